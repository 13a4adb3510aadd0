//! Bounds on what strangers can take of the gateway, and the core's own bounds as a file writes them.

use std::time::Duration;

use ram_core::units::{Bytes, Permille};
use ram_proto::openai;
use serde::{Deserialize, Serialize};

use crate::state::Limits;

use super::ConfigError;

/// Smallest head that hyper can be told to take.
const HEAD_BYTES_MIN: usize = 8192;
/// A number of seconds beyond which nobody waits: a day.
const SECONDS_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What strangers can take of the gateway: connections, bytes, time and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayLimits {
    /// Connections at once: 10,000 providers and as many users. One more waits in the kernel's backlog.
    pub connections_max: usize,
    /// Connections at once from one address, or from one /64 of IPv6. Not for this machine and trusted proxies, who
    /// speak for many.
    pub connections_per_address_max: usize,
    /// Longest head of a request, and what a connection buffers of a body at once, in bytes; at least 8192.
    pub head_bytes_max: usize,
    /// Most headers of a request.
    pub headers_max: usize,
    /// How long a request's head may take, and how long a connection may idle: whoever dribbles is cut off.
    #[serde(rename = "head_within_s", with = "seconds")]
    pub head_within: Duration,
    /// How long a request's body may take: 8 MiB at 1 Mbit/s.
    #[serde(rename = "body_within_s", with = "seconds")]
    pub body_within: Duration,
    /// Bytes of bodies that may be in reading at once, beyond the first 8 KiB of each.
    pub bodies_bytes_max: usize,
    /// How long a peer may read nothing of what is written to it.
    #[serde(rename = "write_stall_s", with = "seconds")]
    pub write_stall: Duration,
    /// Requests that one key may make in a minute; 0 for as many as it pays for.
    pub key_requests_per_minute: u32,
    /// Requests that the demo key takes from one address in a minute; 0 for any number.
    pub demo_requests_per_minute: u32,
    /// Keys that nobody has which one address may try in a minute, and as many at the administrator's; 0 for any
    /// number.
    pub unknown_keys_per_minute: u32,
    /// Messages that one provider may send in a second: 64 running jobs at 30 chunks. A faster one is read slower,
    /// and cut off when it does not slow down.
    pub socket_messages_per_second: u32,
    /// How long an answer is kept for whoever repeats its `idempotency-key`; 0 refuses the header.
    #[serde(rename = "idempotency_kept_s", with = "seconds")]
    pub idempotency_kept: Duration,
    /// Bytes of answers that are kept for that.
    pub idempotency_bytes_max: usize,
    /// Idempotency keys of one caller that are kept.
    pub idempotency_keys_per_caller: usize,
    /// How long running jobs may take to end when the coordinator stops.
    #[serde(rename = "drain_within_s", with = "seconds")]
    pub drain_within: Duration,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_address_max: 512,
            head_bytes_max: openai::HEAD_BYTES_MAX,
            headers_max: openai::HEADERS_MAX,
            head_within: openai::HEAD_WITHIN,
            body_within: openai::BODY_WITHIN,
            bodies_bytes_max: 256 << 20,
            write_stall: openai::WRITE_STALL,
            key_requests_per_minute: 0,
            demo_requests_per_minute: 300,
            unknown_keys_per_minute: 300,
            socket_messages_per_second: 2000,
            idempotency_kept: Duration::from_secs(600),
            idempotency_bytes_max: 64 << 20,
            idempotency_keys_per_caller: 256,
            drain_within: Duration::from_secs(30),
        }
    }
}

impl GatewayLimits {
    /// Whether a coordinator can run with these.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("gateway.connections_max", self.connections_max),
            ("gateway.connections_per_address_max", self.connections_per_address_max),
            ("gateway.headers_max", self.headers_max),
            ("gateway.idempotency_keys_per_caller", self.idempotency_keys_per_caller),
        ];
        if let Some((setting, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::OutOfRange { setting, expected: "at least 1" });
        }
        if self.socket_messages_per_second == 0 {
            let setting = "gateway.socket_messages_per_second";
            return Err(ConfigError::OutOfRange { setting, expected: "at least 1" });
        }
        if self.head_bytes_max < HEAD_BYTES_MIN {
            let setting = "gateway.head_bytes_max";
            return Err(ConfigError::OutOfRange { setting, expected: "at least 8192" });
        }
        let waits = [
            ("gateway.head_within_s", self.head_within),
            ("gateway.body_within_s", self.body_within),
            ("gateway.write_stall_s", self.write_stall),
        ];
        check_waits(&waits)
    }
}

/// Whether all of these are waits that end, and not at once.
fn check_waits(waits: &[(&'static str, Duration)]) -> Result<(), ConfigError> {
    match waits.iter().find(|(_, wait)| wait.is_zero() || *wait > SECONDS_MAX) {
        Some(&(setting, _)) => Err(ConfigError::OutOfRange { setting, expected: "1 to 86400" }),
        None => Ok(()),
    }
}

/// The core's bounds, as a file writes them; see [`Limits`] for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobLimits {
    /// Open jobs at once.
    pub open_max: usize,
    /// Bytes of the prompts of all open jobs.
    pub prompt_bytes_max: Bytes,
    /// Open jobs of one key.
    pub per_key_max: usize,
    /// Open jobs of one address with the demo key.
    pub per_address_max: usize,
    /// Jobs that wait for one model.
    pub queue_per_model_max: usize,
    /// Thousandths of a model's queue that jobs of the demo key may take.
    pub demo_queue_permille: Permille,
    /// How long a job waits for a provider.
    #[serde(rename = "queue_wait_s", with = "seconds")]
    pub queue_wait: Duration,
    /// Providers that may try one job.
    pub attempts_max: u32,
    /// How long a provider with the model loaded has to its first token.
    #[serde(rename = "first_token_s", with = "seconds")]
    pub first_token: Duration,
    /// The same where the model must be loaded first.
    #[serde(rename = "first_token_cold_s", with = "seconds")]
    pub first_token_cold: Duration,
    /// Longest silence within an answer.
    #[serde(rename = "between_tokens_s", with = "seconds")]
    pub between_tokens: Duration,
}

impl JobLimits {
    /// Whether a coordinator can run with these.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("jobs.open_max", self.open_max == 0),
            ("jobs.prompt_bytes_max", self.prompt_bytes_max == Bytes::ZERO),
            ("jobs.per_key_max", self.per_key_max == 0),
            ("jobs.per_address_max", self.per_address_max == 0),
            ("jobs.queue_per_model_max", self.queue_per_model_max == 0),
            ("jobs.attempts_max", self.attempts_max == 0),
        ];
        if let Some((setting, _)) = at_least_one.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(ConfigError::OutOfRange { setting, expected: "at least 1" });
        }
        if self.demo_queue_permille.get() > 1000 {
            let setting = "jobs.demo_queue_permille";
            return Err(ConfigError::OutOfRange { setting, expected: "0 to 1000" });
        }
        let waits = [
            ("jobs.queue_wait_s", self.queue_wait),
            ("jobs.first_token_s", self.first_token),
            ("jobs.first_token_cold_s", self.first_token_cold),
            ("jobs.between_tokens_s", self.between_tokens),
        ];
        check_waits(&waits)
    }

    /// These over all the others.
    #[must_use]
    pub fn over(self, limits: Limits) -> Limits {
        Limits {
            jobs: self.open_max,
            prompt_bytes: self.prompt_bytes_max,
            jobs_per_key: self.per_key_max,
            jobs_per_address: self.per_address_max,
            queue_per_model: self.queue_per_model_max,
            demo_queue_share: self.demo_queue_permille,
            queue_wait: self.queue_wait,
            attempts: self.attempts_max,
            first_token: self.first_token,
            first_token_cold: self.first_token_cold,
            between_tokens: self.between_tokens,
            ..limits
        }
    }
}

impl From<Limits> for JobLimits {
    fn from(limits: Limits) -> Self {
        Self {
            open_max: limits.jobs,
            prompt_bytes_max: limits.prompt_bytes,
            per_key_max: limits.jobs_per_key,
            per_address_max: limits.jobs_per_address,
            queue_per_model_max: limits.queue_per_model,
            demo_queue_permille: limits.demo_queue_share,
            queue_wait: limits.queue_wait,
            attempts_max: limits.attempts,
            first_token: limits.first_token,
            first_token_cold: limits.first_token_cold,
            between_tokens: limits.between_tokens,
        }
    }
}

impl Default for JobLimits {
    fn default() -> Self {
        Limits::default().into()
    }
}

/// [`Limits`] as [`JobLimits`].
pub(super) mod of_jobs {
    use super::{Deserialize, JobLimits, Limits, Serialize};

    pub(in crate::config) fn serialize<S: serde::Serializer>(
        limits: &Limits,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        JobLimits::from(*limits).serialize(serializer)
    }

    pub(in crate::config) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Limits, D::Error> {
        Ok(JobLimits::deserialize(deserializer)?.over(Limits::default()))
    }
}

/// A duration as whole seconds.
mod seconds {
    use super::{Deserialize, Duration};

    pub(super) fn serialize<S: serde::Serializer>(wait: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(wait.as_secs())
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut GatewayLimits), refused: Option<&str>) {
        let mut limits = GatewayLimits::default();
        change(&mut limits);
        match limits.check() {
            Err(ConfigError::OutOfRange { setting, .. }) => assert_eq!(Some(setting), refused),
            other => assert_eq!((other.is_ok(), refused), (true, None)),
        }
    }

    #[test]
    fn a_bound_with_which_nothing_could_run_is_refused_by_name() {
        check(|_| {}, None);
        check(|limits| limits.connections_max = 0, Some("gateway.connections_max"));
        check(|limits| limits.head_bytes_max = 8191, Some("gateway.head_bytes_max"));
        check(|limits| limits.write_stall = Duration::ZERO, Some("gateway.write_stall_s"));
        check(|limits| limits.key_requests_per_minute = 0, None);
        check(|limits| limits.idempotency_kept = Duration::ZERO, None);
    }

    #[test]
    fn so_is_one_with_which_no_job_could() {
        let refused = |change: fn(&mut JobLimits)| {
            let mut limits = JobLimits::default();
            change(&mut limits);
            match limits.check() {
                Err(ConfigError::OutOfRange { setting, .. }) => Some(setting),
                _ => None,
            }
        };
        assert_eq!(refused(|_| {}), None);
        assert_eq!(refused(|limits| limits.demo_queue_permille = Permille::new(0)), None);
        assert_eq!(refused(|limits| limits.attempts_max = 0), Some("jobs.attempts_max"));
        assert_eq!(refused(|limits| limits.first_token = Duration::ZERO), Some("jobs.first_token_s"));
        let config = crate::config::Config {
            limits: Limits { between_tokens: Duration::ZERO, ..Limits::default() },
            ..crate::config::Config::default()
        };
        assert!(config.state().is_err(), "it is asked for at the start");
    }

    #[test]
    fn what_the_file_does_not_know_of_the_core_stays() {
        let limits = Limits { providers: 3, ..Limits::default() };
        let over = JobLimits { open_max: 5, ..JobLimits::default() }.over(limits);
        assert_eq!((over.jobs, over.providers), (5, 3));
    }
}
