"""Engine for batch processing: the actors of a Ray cluster."""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch

from .interfaces import VQPretrained

# Maximum number of workers that may die on one job.
_MAX_WORKERS = 5


class RayEngine:
    """Engine that maps a function of a model over jobs with Ray Data's actors.

    Each actor has a copy of the model and uses one GPU or one CPU thread. The
    cluster is the one at ``RAY_ADDRESS`` or from ``ray.init``; if there is
    none, it is started on this machine. All nodes must have the files under the
    same paths.

    Arguments
    ---------
    device : str, optional
        Device of the actors, ``"cpu"`` or ``"cuda"``; by default a GPU if the
        cluster has one.

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
        # Ray sends usage statistics to its developers by default.
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
        """Yield ``function(model, job)`` for each job, in order.

        If a worker or node is lost, its job is repeated on another, so the
        function must be idempotent. An ImportError, MemoryError, OSError or
        ValueError in the function is raised unchanged.

        Raises
        ------
        OSError
            If five workers die on one job, or the cluster is lost.
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
            device, resources, max_actors = self._resources()
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
            context = dataset.context
            context.enable_progress_bars = False
            context.print_on_execution_start = False
            context.execution_options.preserve_order = True
            context.max_consecutive_actor_init_deaths = _MAX_WORKERS
            actor = {"max_restarts": -1, "max_task_retries": -1}
            starts = ray.remote(num_cpus=0, **actor)(_Starts).remote()
            home = model.device
            shared = ray.put(model.cpu())
            model.to(home)
            max_actors = min(max_actors, len(rows))
            results = dataset.map(
                _Worker,
                fn_constructor_args=(function, shared, device, starts),
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=max_actors, initial_size=max_actors
                ),
                **resources,
            )
            for row in results.iter_rows():
                result, error = pickle.loads(row["result"])
                if error is not None:
                    raise error
                yield result
        except ray.exceptions.RayTaskError:
            raise  # An error in the function, with its traceback
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise OSError(f"Ray did not finish: {reason}") from error
        finally:
            if started:
                ray.shutdown()

    def _resources(self):
        """Return the device and resources of an actor, and the maximum number
        of actors."""
        total = self.ray.cluster_resources()
        gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
        device = self.device or ("cuda" if gpus else "cpu")
        if device == "cpu":
            return device, {"num_cpus": 1}, max(cpus, 1)
        if not gpus:
            raise ValueError(
                f"The device '{device}' cannot be used: no node of the Ray "
                "cluster has a GPU. Choose cpu, or leave the device out."
            )
        return device, {"num_gpus": 1}, gpus


class _Starts:
    """Actor that counts the starts of each job."""

    def __init__(self):
        self.counts = Counter()

    def add(self, number):
        """Count a start of a job, and return its number of starts."""
        self.counts[number] += 1
        return self.counts[number]


class _Worker:
    """Actor with a copy of the model."""

    def __init__(self, function, model, device, starts):
        import ray

        # Make results bit-identical to those of a single-threaded process.
        torch.set_num_threads(1)
        self.function, self.model = function, ray.get(model).to(device)
        self.started = lambda number: ray.get(starts.add.remote(number))

    def __call__(self, row):
        result = error = None
        try:
            if self.started(row["number"]) > _MAX_WORKERS:
                raise OSError(
                    f"{_MAX_WORKERS} workers died on one job, e.g. because "
                    "memory ran out or an audio file crashed the process: see "
                    "Ray's logs."
                )
            result = self.function(self.model, pickle.loads(row["job"]))
        except (ImportError, MemoryError, OSError, ValueError) as raised:
            error = raised
        return {"result": pickle.dumps((result, error))}
