"""Every metric of Headwater: name, type, unit and meaning. The only place that makes one.

No label holds a user or an item. The trainer worker has no registry: it sends values in
messages and the parent process sets them here. Names and units follow
https://prometheus.io/docs/practices/naming/.
"""

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
)

# From a tenth of a millisecond to ten seconds, three steps a decade.
_SECONDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LONG_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """One set of metrics on a registry of its own; made once by the entry point."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            registry.register(collector)
        self.registry = registry

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"headwater_{name}", meaning, labels, registry=registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"headwater_{name}", meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"headwater_{name}", meaning, buckets=buckets, registry=registry)

        # Stream
        self.events = counter(
            "events",
            "Records read, by outcome: scored, applied, duplicate, dead_letter, erased.",
            "outcome",
        )
        self.dead_letters = counter("dead_letters", "Dead-lettered records, by reason.", "reason")
        self.unknown_items = counter(
            "unknown_item_events", "Answered events whose item the serving version does not know."
        )
        self.event_age = histogram(
            "event_age_seconds", "Age of an event by its own timestamp when read.", _LONG_SECONDS
        )
        self.lag = gauge("lag_records", "Records between our position and the end.", "partition")
        self.paused = gauge("source_paused", "1 while the source is paused by back-pressure.")
        self.partitions = gauge("assigned_partitions", "Partitions that this process owns.")
        self.rebalances = counter("rebalances", "Times that partitions were assigned.")
        self.offsets_lost = counter(
            "offsets_lost", "Records that retention removed before they were committed."
        )
        self.offsets_untaught = counter(
            "offsets_untaught", "Records that retention removed before they were trained on."
        )
        self.produced = counter(
            "produced_records", "Records sent, by topic role and result.", "role", "result"
        )
        self.produce_seconds = histogram(
            "produce_seconds",
            "From handing a batch to the producer to its acknowledgement.",
            _SECONDS,
        )
        self.commits = counter("commits", "Offset commits, by result.", "result")
        self.event_to_recommendation = histogram(
            "event_to_recommendation_seconds",
            "From an event's append time in Kafka to its recommendation's acknowledgement.",
            (*_SECONDS, 20, 50, 100),
        )

        self.snapshots = counter(
            "snapshots", "State snapshots of partitions: written, failed.", "result"
        )
        self.snapshots_damaged = gauge(
            "snapshots_damaged", "A partition's snapshots with damaged parts.", "partition"
        )
        self.snapshot_seconds = histogram(
            "snapshot_seconds", "Writing one partition's state snapshot.", _LONG_SECONDS
        )
        self.snapshot_bytes = gauge(
            "snapshot_bytes", "Size of a partition's newest state snapshot.", "partition"
        )
        self.snapshot_time = gauge(
            "snapshot_timestamp_seconds",
            "Unix time of a partition's newest state snapshot.",
            "partition",
        )
        self.restore_seconds = histogram(
            "restore_seconds", "Taking up all partitions of an assignment.", _LONG_SECONDS
        )

        self.loop_delay = histogram(
            "event_loop_delay_seconds",
            "How late the event loop woke up, asked four times a second.",
            _SECONDS,
        )

        # Scoring
        self.score_seconds = histogram(
            "score_seconds", "Scoring of one batch in the scoring thread.", _SECONDS
        )
        self.score_batch = histogram("score_batch_events", "Events scored in one batch.", _SIZES)
        self.prequential_hit_rate = gauge(
            "prequential_hit_rate_at_10", "HR@10 of the live model, mean of the last 2,000 events."
        )
        self.prequential_ndcg = gauge(
            "prequential_ndcg_at_10", "NDCG@10 of the live model, mean of the last 2,000 events."
        )
        self.prequential_events = counter(
            "prequential_events", "Events that the live model was tested on before training."
        )
        self.users = gauge("history_users", "Users with a history in memory.")
        self.users_evicted = counter("history_evicted_users", "Longest idle users evicted.")

        # Training
        self.queue_depth = gauge("untrained_events", "Events waiting for weights in the parent.")
        self.in_flight_batches = gauge("worker_micro_batches", "Micro-batches at the worker.")
        self.train_batch = histogram(
            "micro_batch_events", "Events in one closed micro-batch.", _SIZES
        )
        self.trained_events = counter(
            "trained_events", "Events in finished rounds, those held out included."
        )
        self.skipped_sequences = counter(
            "skipped_sequences",
            "Training sequences given up: rejected too often, or too long before the rejection.",
        )
        self.train_steps = counter("train_steps", "Optimizer steps.")
        self.train_step_seconds = histogram("train_step_seconds", "One optimizer step.", _SECONDS)
        self.train_loss = gauge("train_loss", "Mean loss of the last round, in nats.")
        self.non_finite = counter(
            "non_finite_rounds",
            "Rounds undone: a loss, gradient or weight not finite, or a loss far above the usual.",
        )
        self.holdout_ndcg = gauge(
            "holdout_ndcg_at_10",
            "NDCG@10 on the rolling holdout: champion, challenger, and the older version beside.",
            "model",
        )
        self.holdout_shift = gauge(
            "holdout_shift_ndcg_at_10",
            "NDCG@10 of the champion on the holdout, less that when it was published.",
        )
        self.holdout_rows = gauge("holdout_rows", "Interactions in the rolling holdout.")
        self.gate_decisions = counter("gate_decisions", "Verdicts of the gate.", "verdict")
        self.labels = counter("click_labels", "Labels taught to the click head.")
        self.click_rows = gauge("click_holdout_rows", "Labels that are held out.")
        self.click_auc = gauge("click_auc", "AUC of the click head on the labels held out.")
        self.click_log_loss = gauge(
            "click_log_loss_nats", "Log loss of the click head on the labels held out."
        )
        self.click_accuracy = gauge(
            "click_accuracy_ratio", "Share of the held-out labels that the click head gets right."
        )
        self.click_rmse = gauge(
            "click_rmse", "Root mean squared error of the click head on the labels held out."
        )
        self.click_rerank = gauge(
            "click_rerank_weight", "Weight of the click head in rankings; 0: it does not reorder."
        )
        self.worker_up = gauge("worker_up", "1 while the trainer worker answers.")
        self.worker_restarts = counter(
            "worker_restarts", "Trainer workers started after one ended."
        )

        # Serving
        self.model_version = gauge("model_version", "Version that serves.")
        self.model_published = gauge(
            "model_publish_timestamp_seconds",
            "Unix time at which the serving version was published.",
        )
        self.model_items = gauge("model_items", "Items that the serving version can recommend.")
        self.items_expired = counter(
            "expired_items", "Items that lost their row when a version was published."
        )
        self.swaps = counter("swaps", "Versions put into service, by result.", "result")
        self.swap_load_seconds = histogram(
            "swap_load_seconds",
            "Reading, verifying and warming a version beside the champion.",
            _SECONDS,
        )
        self.swap_pause_seconds = histogram(
            "swap_pause_seconds",
            "The assignment that makes a loaded version the champion.",
            (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1),
        )
        self.event_to_weights = histogram(
            "event_to_weights_seconds",
            "From reading a micro-batch's oldest event to serving a version trained on it.",
            _LONG_SECONDS,
        )
