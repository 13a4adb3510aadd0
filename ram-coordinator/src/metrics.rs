//! What an operator's Prometheus reads: counters that are bumped where things happen, gauges that are filled in when
//! somebody asks. The text is OpenMetrics 1.0.
//!
//! Every label has few values: routes as the router writes them, models by the catalogue's aliases, outcomes by name.
//! No label is anything that a stranger chose.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use ram_core::catalog;
use ram_core::id::ModelId;
use ram_core::job::{Failure, Usage};
use ram_core::units::XRam;

use crate::state::{Census, JobError};

/// The media type of [`Metrics::text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What stands for a model that the catalogue does not know, and for any other word that is not ours.
const OTHER: &str = "other";
/// Bounds of the buckets for what users wait for, in seconds: from a loaded model's first token to a long answer.
const WAITS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
/// The same for the store: from memory to a disk that chokes.
const STORE_WAITS: [f64; 10] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 10.0];

/// All metrics of one coordinator.
pub struct Metrics {
    registry: Registry,
    jobs: Family<JobLabels, Counter>,
    failures: Family<ReasonLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    charged: Family<ModelLabels, Counter<f64>>,
    first_token: Family<ModelLabels, Histogram, Buckets>,
    duration: Family<ModelLabels, Histogram, Buckets>,
    queued: Family<ModelLabels, Gauge>,
    open_jobs: Gauge,
    providers: Family<StateLabels, Gauge>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<RouteLabels, Histogram, Buckets>,
    refused: Family<LimitLabels, Counter>,
    store: Family<OperationLabels, Histogram, Buckets>,
    messages: Family<DirectionLabels, Counter>,
    pub(crate) bytes_received: Counter,
    pub(crate) bytes_sent: Counter,
    /// Connections that are open now.
    pub(crate) connections: Gauge,
    /// Streams of events that are open now.
    pub(crate) streams: Gauge,
    /// Connections that were cut because their peer read nothing.
    pub(crate) stalled: Counter,
    /// Answers that were told again.
    pub(crate) replays: Counter,
    process: Process,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    model: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    model: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

/// Makes histograms of one shape.
#[derive(Clone, Copy)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// How a job ended, as far as whoever waited for it can tell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum JobEnd<'a> {
    /// With a whole answer.
    Done(Usage, XRam),
    /// With an error, and perhaps a charge for what had been delivered.
    Failed(&'a JobError, XRam),
    /// Nobody waited any more.
    Abandoned,
}

/// Which way something went.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    /// To us.
    In,
    /// From us.
    Out,
}

impl Default for Metrics {
    fn default() -> Self {
        let waits = || Family::new_with_constructor(Buckets(&WAITS));
        let metrics = Self {
            registry: Registry::default(),
            jobs: Family::default(),
            failures: Family::default(),
            tokens: Family::default(),
            charged: Family::default(),
            first_token: Family::new_with_constructor(Buckets(&WAITS)),
            duration: Family::new_with_constructor(Buckets(&WAITS)),
            queued: Family::default(),
            open_jobs: Gauge::default(),
            providers: Family::default(),
            requests: Family::default(),
            request_seconds: waits(),
            refused: Family::default(),
            store: Family::new_with_constructor(Buckets(&STORE_WAITS)),
            messages: Family::default(),
            bytes_received: Counter::default(),
            bytes_sent: Counter::default(),
            connections: Gauge::default(),
            streams: Gauge::default(),
            stalled: Counter::default(),
            replays: Counter::default(),
            process: Process::default(),
        };
        let mut registry = Registry::default();
        let ours = registry.sub_registry_with_prefix("ram");
        metrics.register_jobs(ours);
        metrics.register_traffic(ours);
        metrics.process.register(&mut registry);
        Self { registry, ..metrics }
    }
}

impl Metrics {
    fn register_jobs(&self, registry: &mut Registry) {
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The software that runs", Info::new(version));
        registry.register("jobs", "Jobs that ended, by model and outcome", self.jobs.clone());
        registry.register("job_failures", "Jobs that got no whole answer, by reason", self.failures.clone());
        registry.register("tokens", "Tokens that were charged for", self.tokens.clone());
        registry.register("charged_xram", "What answers cost, in xRAM", self.charged.clone());
        let seconds = Unit::Seconds;
        let help = "From a request to the first word of its answer";
        registry.register_with_unit("first_token", help, seconds.clone(), self.first_token.clone());
        let help = "From a request to the end of its answer";
        registry.register_with_unit("job_duration", help, seconds.clone(), self.duration.clone());
        registry.register("queue_length", "Jobs that wait for a provider", self.queued.clone());
        registry.register("open_jobs", "Jobs that have not ended", self.open_jobs.clone());
        registry.register("providers", "Providers, by what they do", self.providers.clone());
        let help = "How long the store took to answer";
        registry.register_with_unit("store", help, seconds, self.store.clone());
    }

    fn register_traffic(&self, registry: &mut Registry) {
        registry.register("http_requests", "Requests that were answered", self.requests.clone());
        let help = "From a request to the head of its answer";
        registry.register_with_unit("http_request", help, Unit::Seconds, self.request_seconds.clone());
        let help = "Requests and connections that a limit turned away";
        registry.register("refused", help, self.refused.clone());
        registry.register("connections", "Connections that are open", self.connections.clone());
        registry.register("streams", "Streams of events that are open", self.streams.clone());
        let help = "Connections cut because their peer read nothing";
        registry.register("stalled_connections", help, self.stalled.clone());
        let help = "Answers told again to a repeated idempotency key";
        registry.register("idempotent_replays", help, self.replays.clone());
        registry.register("provider_messages", "Messages on providers' sockets", self.messages.clone());
        registry.register("received_bytes", "Bytes that came in", self.bytes_received.clone());
        registry.register("sent_bytes", "Bytes that went out", self.bytes_sent.clone());
    }

    /// All of it, as Prometheus reads it, with what the core counts right now.
    ///
    /// # Panics
    /// Never: a string takes whatever is written to it.
    #[must_use]
    pub fn text(&self, census: Option<&Census>) -> String {
        if let Some(census) = census {
            self.count(census);
        }
        self.process.look();
        let mut told = String::new();
        text::encode(&mut told, &self.registry).expect("a string takes whatever is written to it");
        told
    }

    fn count(&self, census: &Census) {
        self.open_jobs.set(wide(census.open_jobs));
        for spec in catalog::all() {
            let waiting = census.queued.iter().find(|(model, _)| model.as_str() == spec.id);
            let waiting = waiting.map_or(0, |(_, jobs)| *jobs);
            self.queued.get_or_create(&ModelLabels { model: spec.alias }).set(wide(waiting));
        }
        for (state, number) in
            [("idle", census.idle), ("busy", census.busy), ("draining", census.draining), ("new", census.new)]
        {
            self.providers.get_or_create(&StateLabels { state }).set(wide(number));
        }
    }

    /// The first word of an answer came after so long.
    pub(crate) fn first_word(&self, model: &ModelId, after: Duration) {
        self.first_token.get_or_create(&ModelLabels { model: alias(model) }).observe(after.as_secs_f64());
    }

    /// A job ended after so long.
    pub(crate) fn job_ended(&self, model: &ModelId, end: JobEnd<'_>, after: Duration) {
        let model = alias(model);
        let (outcome, charge) = match end {
            JobEnd::Done(usage, charge) => {
                for (kind, tokens) in [("prompt", usage.prompt), ("completion", usage.completion)] {
                    self.tokens.get_or_create(&TokenLabels { model, kind }).inc_by(tokens.get());
                }
                self.duration.get_or_create(&ModelLabels { model }).observe(after.as_secs_f64());
                ("done", charge)
            }
            JobEnd::Failed(error, charge) => {
                self.failures.get_or_create(&ReasonLabels { reason: reason(error) }).inc();
                let outcome = if matches!(error, JobError::Provider { .. }) { "failed" } else { "refused" };
                (outcome, charge)
            }
            JobEnd::Abandoned => ("abandoned", XRam::ZERO),
        };
        self.jobs.get_or_create(&JobLabels { model, outcome }).inc();
        if charge > XRam::ZERO {
            self.charged.get_or_create(&ModelLabels { model }).inc_by(approximate(charge));
        }
    }

    /// A request was answered: the head of its answer went out after so long.
    pub(crate) fn request(&self, route: Option<&str>, method: &str, status: u16, after: Duration) {
        let route = route.unwrap_or(OTHER).to_owned();
        let known = ["GET", "POST", "DELETE", "OPTIONS", "HEAD"];
        let method = known.into_iter().find(|known| *known == method).unwrap_or(OTHER);
        self.request_seconds
            .get_or_create(&RouteLabels { route: route.clone() })
            .observe(after.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { route, method, status }).inc();
    }

    /// A limit turned somebody away.
    pub(crate) fn limited(&self, limit: &'static str) {
        self.refused.get_or_create(&LimitLabels { limit }).inc();
    }

    /// The store answered after so long.
    pub(crate) fn stored(&self, operation: &'static str, after: Duration) {
        self.store.get_or_create(&OperationLabels { operation }).observe(after.as_secs_f64());
    }

    /// The counter of providers' messages, for a socket to keep.
    pub(crate) fn messages(&self, direction: Direction) -> Counter {
        let direction = match direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        self.messages.get_or_create(&DirectionLabels { direction }).clone()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// The catalogue's short name, so that nobody can make labels by asking for models.
fn alias(model: &ModelId) -> &'static str {
    catalog::resolve(model.as_str()).map_or(OTHER, |spec| spec.alias)
}

fn reason(error: &JobError) -> &'static str {
    match error {
        JobError::UnknownModel(_) => "unknown_model",
        JobError::NoCapacity(_) | JobError::DoesNotFit { .. } => "no_capacity",
        JobError::ProviderGone => "provider_gone",
        JobError::Loading(_) => "loading",
        JobError::FellApart { .. } => "fell_apart",
        JobError::QueueFull(_) => "queue_full",
        JobError::TooManyOpen { .. } => "too_many_open",
        JobError::Hold(_) => "payment",
        JobError::DemoBudget => "demo_budget",
        JobError::Draining => "draining",
        JobError::Provider { failure } => match failure {
            Failure::ContextLengthExceeded { .. } => "context_length",
            Failure::InvalidPrompt => "invalid_prompt",
            Failure::ProviderLost => "provider_lost",
            Failure::TimedOut => "timed_out",
            Failure::Cancelled => "cancelled",
            _ => "provider",
        },
    }
}

/// An amount as a float, for a graph: exact amounts are the ledger's.
fn approximate(amount: XRam) -> f64 {
    amount.to_string().parse().unwrap_or(f64::NAN)
}

fn wide(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What the operating system says of this process; on Linux, whose files are cheap to read.
#[derive(Debug, Default)]
struct Process {
    resident: Gauge,
    cpu: Counter<f64>,
    files: Gauge,
}

impl Process {
    /// Under the names that every dashboard knows.
    fn register(&self, registry: &mut Registry) {
        let help = "Memory that the process holds";
        registry.register_with_unit("process_resident_memory", help, Unit::Bytes, self.resident.clone());
        let help = "Processor time that the process has used";
        registry.register_with_unit("process_cpu", help, Unit::Seconds, self.cpu.clone());
        registry.register("process_open_fds", "File handles that are open", self.files.clone());
    }

    #[cfg(target_os = "linux")]
    fn look(&self) {
        /// Bytes of a page of memory, as Linux has it on every machine that this software is built for.
        const PAGE_BYTES: i64 = 4096;
        /// Ticks of a second that Linux tells processor time in, everywhere.
        const TICKS: f64 = 100.0;
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        if let Some(pages) = statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()) {
            self.resident.set(pages.saturating_mul(PAGE_BYTES));
        }
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name in brackets may hold blanks; utime and stime are the 12th and 13th field after it.
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks = after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
        self.cpu.inc_by((ticks.sum::<f64>() / TICKS - self.cpu.get()).max(0.0));
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.files.set(wide(files.count()));
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn look(&self) {
        let _ = (&self.resident, &self.cpu, &self.files);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::units::TokenCount;

    #[test]
    fn what_happened_is_counted_under_the_catalogues_names() {
        let metrics = Metrics::default();
        let usage = Usage { prompt: TokenCount::new(9), completion: TokenCount::new(2), ..Usage::default() };
        let (known, invented) = ("ram-demo".parse().unwrap(), "canary/model".parse().unwrap());
        metrics.job_ended(&known, JobEnd::Done(usage, XRam::from_milli_xram(1500)), Duration::from_secs(3));
        let error = JobError::UnknownModel("canary/model".parse().unwrap());
        metrics.job_ended(&invented, JobEnd::Failed(&error, XRam::ZERO), Duration::ZERO);
        metrics.first_word(&known, Duration::from_millis(30));
        metrics.request(None, "BREW", 404, Duration::ZERO);
        let text = metrics.text(Some(&Census::default()));
        for line in [
            r#"ram_jobs_total{model="ram-demo",outcome="done"} 1"#,
            r#"ram_jobs_total{model="other",outcome="refused"} 1"#,
            r#"ram_job_failures_total{reason="unknown_model"} 1"#,
            r#"ram_tokens_total{model="ram-demo",kind="prompt"} 9"#,
            r#"ram_charged_xram_total{model="ram-demo"} 1.5"#,
            r#"ram_first_token_seconds_bucket{le="0.05",model="ram-demo"} 1"#,
            r#"ram_http_requests_total{route="other",method="other",status="404"} 1"#,
            r#"ram_queue_length{model="ram-demo"} 0"#,
            r#"ram_providers{state="idle"} 0"#,
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("canary"));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_process_is_told_under_the_usual_names_alone() {
        let text = Metrics::default().text(None);
        assert!(text.lines().any(|told| told.starts_with("process_resident_memory_bytes ")));
        assert!(!text.contains("ram_process_"), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_knows_its_own_size() {
        let process = Process::default();
        process.look();
        assert!(process.resident.get() > 1 << 20 && process.files.get() > 0);
    }
}
