"""Show the results at the end of a run, and the commands to run next."""

import logging
import pathlib
import shlex

from speechbrain_vq.dataio.manifests import read_json, read_manifest
from speechbrain_vq.report.reproduce import COMMAND_FILE

logger = logging.getLogger(__name__)


def show_ending(
    folder: pathlib.Path, results: dict, manifests: pathlib.Path | None
) -> None:
    """Show the results of a finished run and the next commands, which use a
    recording of ``test.json``. After training on a folder of recordings, also
    write the report."""
    formats = {
        "used_codes_percent": "{:.0f} % of the codes used",
        "perplexity": "perplexity {:.0f}",
        "reconstruction_error": "reconstruction error {:.3f}",
        "pnmi": "PNMI {:.3f}",
    }
    parts = [
        form.format(results[key])
        for key, form in formats.items()
        if results.get(key) is not None
    ]
    logger.info("Test: %s (%s)", ", ".join(parts), folder / "results.json")
    model = folder / "model"
    if not model.is_dir():
        return
    about = read_json(model / "config.json")
    interface, source = about["speechbrain_interface"], about.get("ssl_source")
    logger.info("Model: %s (%s.from_hparams loads it)", model, interface)
    encoder = (f"--ssl-encoder={source}",) if source else ()
    page, steps = folder / "report.html", {}
    if (folder / COMMAND_FILE).is_file():
        logger.info("Writing the report, which takes a while ...")
        # Imported here because only these runs need it.
        from speechbrain_vq.report import write_report

        try:
            write_report(folder, page)
        except (OSError, ValueError) as error:
            logger.warning("The report was not written: %s", error)
        else:
            logger.info("Report: %s (open it in a browser)", page)
    else:
        steps["look at it"] = ("report", str(folder), f"--out={page}", *encoder)
    if manifests is not None:
        test = manifests / "test.json"
        recording, *_, other = [
            item["wav"] for item in read_manifest(test).values()
        ] * 2
        steps["hear it"] = (
            *("reconstruct", recording, f"--model={model}"),
            f"--out={folder / 'reconstructed'}",
            *encoder,
        )
        if interface == "VoiceConverter":
            steps["convert it"] = (
                *("convert", recording, f"--model={model}"),
                *(f"--target={other}", f"--out={folder / 'converted'}"),
            )
        steps["measure it"] = (
            *("evaluate", str(model), f"--manifest={test}"),
            f"--out={folder / 'evaluation'}",
            *encoder,
        )
    steps["share it"] = ("push", str(model), "ORG/NAME")
    logger.info("Next:")
    for name, words in steps.items():
        logger.info("  %-11s speechbrain-vq %s", name, shlex.join(words))
