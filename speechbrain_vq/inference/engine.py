"""Engine for batch processing: the actors of a Ray cluster."""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch

from .interfaces import VQPretrained

# After so many workers, a job is given up.
_MOST_WORKERS = 5


class RayEngine:
    """Call a function of a model for many jobs, over the actors of Ray Data.

    Each actor holds the model, and computes on a GPU or with one thread of a
    CPU. The cluster is that of ``RAY_ADDRESS`` or of ``ray.init``, else one is
    started on this machine. Its nodes see files under the same paths.

    Arguments
    ---------
    device : str, optional
        Device of the actors, ``"cpu"`` or ``"cuda"``; by default a GPU where
        the cluster has any.

    Raises
    ------
    ImportError
        If Ray is not installed.

    Example
    -------
    >>> engine = RayEngine()  # doctest: +SKIP
    >>> tokenize_to("out", ["in"], tokenizer, engine=engine)  # doctest: +SKIP
    """

    def __init__(self, device: str | None = None):
        # No statistics of a cluster started here go to Ray's makers unasked.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
        try:
            import ray.data
        except ImportError as error:
            raise ImportError(
                "The engine needs Ray: pip install 'speechbrain-vq[ray]'"
            ) from error
        self.ray, self.device = ray, device

    def map(
        self,
        function: Callable[[VQPretrained, object], object],
        model: VQPretrained,
        jobs: Iterable,
    ) -> Iterator:
        """Yield ``function(model, job)`` for each job, in the order of the jobs.

        A job whose worker or node is lost is done again on another, so the
        function gives the same when it is called twice. Errors that a user can
        mend come back as they are.

        Raises
        ------
        OSError
            If five workers died on a job, or the cluster is lost.
        """
        ray = self.ray
        rows = [
            {"number": number, "job": pickle.dumps(job)}
            for number, job in enumerate(jobs)
        ]
        if not rows:
            return
        if started := not ray.is_initialized():
            ray.init(include_dashboard=False, logging_level=logging.ERROR)
        try:
            device, resources, most = self._resources()
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
            context = dataset.context
            context.enable_progress_bars = False
            context.print_on_execution_start = False
            context.execution_options.preserve_order = True
            context.max_consecutive_actor_init_deaths = _MOST_WORKERS
            counter = ray.remote(
                num_cpus=0, max_restarts=-1, max_task_retries=-1
            )
            starts = counter(_Starts).remote()
            home = model.device
            shared = ray.put(model.cpu())
            model.to(home)
            most = min(most, len(rows))
            results = dataset.map(
                _Worker,
                fn_constructor_args=(function, shared, device, starts),
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=most, initial_size=most
                ),
                **resources,
            )
            for row in results.iter_rows():
                result, error = pickle.loads(row["result"])
                if error is not None:
                    raise error
                yield result
        except ray.exceptions.RayTaskError:
            raise  # An error of the function, with its traceback
        except ray.exceptions.RayError as error:
            why = str(error).strip().partition("\n")[0]
            raise OSError(f"Ray could not end its work: {why}") from error
        finally:
            if started:
                ray.shutdown()

    def _resources(self):
        """Return device, resources of an actor, and how many there may be."""
        total = self.ray.cluster_resources()
        gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
        device = self.device or ("cuda" if gpus else "cpu")
        if device == "cpu":
            return device, {"num_cpus": 1}, max(cpus, 1)
        if not gpus:
            raise ValueError(
                f"The device '{device}' cannot be used: no node of the Ray "
                "cluster has a GPU. Name cpu, or none."
            )
        return device, {"num_gpus": 1}, gpus


class _Starts:
    """An actor that counts how often each job was started."""

    def __init__(self):
        self.counts = Counter()

    def add(self, number):
        """Count a start of a job, and return how many there were."""
        self.counts[number] += 1
        return self.counts[number]


class _Worker:
    """An actor with the model."""

    def __init__(self, function, model, device, starts):
        import ray

        # One process with one thread computes the same bits.
        torch.set_num_threads(1)
        self.function, self.model = function, ray.get(model).to(device)
        self.started = lambda number: ray.get(starts.add.remote(number))

    def __call__(self, row):
        result = error = None
        try:
            if self.started(row["number"]) > _MOST_WORKERS:
                raise OSError(
                    f"{_MOST_WORKERS} workers died on one job, as of too little "
                    "memory or an audio file that ends the process: see the "
                    "logs of Ray."
                )
            result = self.function(self.model, pickle.loads(row["job"]))
        except (ImportError, MemoryError, OSError, ValueError) as raised:
            error = raised
        return {"result": pickle.dumps((result, error))}
