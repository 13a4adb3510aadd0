//! Probes of the coordinator: does it answer, is its certificate good, do the clocks agree, would it give work.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ram_core::id::ProviderId;
use ram_proto::rest::Ready;
use ram_proto::routes;
use serde::Deserialize;
use ureq::http::StatusCode;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::report::{Check, CheckId, Finding, Outcome};
use super::{Patient, instant, probe};
use crate::config::CoordinatorUrl;
use crate::lock::HomeLock;

/// Longest wait for a whole answer: within the time of a probe, so that the reason is told and not only the lateness.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// Longest answer that is read: a provider with 64 models takes a fraction of it.
const BODY_BYTES_MAX: u64 = 1 << 20;
/// Clocks this close are equal: a `Date` has whole seconds, and an answer may take some.
const SKEW_PASS: Duration = Duration::from_secs(30);
/// A clock this slow makes a registration look expired, which it is after 300 seconds.
const SKEW_FAIL: Duration = Duration::from_secs(240);

/// All probes of the coordinator; the later ones only when it answers at all.
pub(super) async fn checks(patient: &Arc<Patient>) -> Vec<Check> {
    use CheckId::*;
    let mut checks = probe([CoordinatorReachable, CoordinatorTls, CoordinatorClock], patient, reach).await;
    let answers =
        checks.iter().all(|check| check.id == CoordinatorClock || check.finding.outcome != Outcome::Fail);
    if answers {
        checks.extend(probe([CoordinatorReady], patient, |patient| [ready(patient)]).await);
        checks.extend(probe([NodeEligible], patient, |patient| [eligible(patient)]).await);
    } else {
        let skipped = |id| Check::new(id, Finding::skip("the coordinator does not answer"), Duration::ZERO);
        checks.extend([CoordinatorReady, NodeEligible].map(skipped));
    }
    checks
}

/// An answer of the coordinator.
struct Answer {
    status: StatusCode,
    date: Option<SystemTime>,
    body: Vec<u8>,
}

/// Asks the coordinator for a path.
fn get(coordinator: &CoordinatorUrl, path: &str) -> Result<Answer, ureq::Error> {
    let roots = rustls_native_certs::load_native_certs().certs;
    let roots: RootCerts = roots.iter().map(|cert| Certificate::from_der(cert).to_owned()).into();
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(ANSWER_MAX))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None) // the node's own socket uses none either
        .tls_config(tls)
        .build();
    let mut response = ureq::Agent::new_with_config(config).get(coordinator.http(path)).call()?;
    let date =
        response.headers().get("date").and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let body = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_vec()?;
    Ok(Answer { status: response.status(), date, body })
}

// ---- reachable, certificate, clock ----

fn reach(patient: &Patient) -> [Finding; 3] {
    let coordinator = &patient.config.coordinator;
    let started = instant();
    match get(coordinator, routes::HEALTH) {
        Ok(answer) => {
            let reachable = reachable(answer.status, started.elapsed());
            [reachable, tls(coordinator), clock(answer.date, now())]
        }
        Err(error) if is_of_tls(&error) => [
            Finding::pass("something answers there"),
            Finding::fail(
                told(&error),
                "check the host in the URL, the machine's date, and that its roots know the certificate's authority",
            ),
            Finding::skip("no trusted answer to read a date from"),
        ],
        Err(error) => [
            Finding::fail(
                told(&error),
                format!("is {coordinator} right, is it running, does a firewall stand between?"),
            ),
            Finding::skip("it does not answer"),
            Finding::skip("it does not answer"),
        ],
    }
}

fn reachable(status: StatusCode, took: Duration) -> Finding {
    if status.is_success() {
        Finding::pass(format!("answers in {} ms", took.as_millis()))
    } else {
        Finding::warn(
            format!("answers with status {}, not as a coordinator does", status.as_u16()),
            "check host, port and path of --coordinator",
        )
    }
}

fn tls(coordinator: &CoordinatorUrl) -> Finding {
    if coordinator.is_tls() {
        Finding::pass("its certificate is good")
    } else if coordinator.is_exposed() {
        Finding::warn("prompts travel unencrypted", "use wss:// beyond a network of your own")
    } else {
        Finding::pass("on this machine: none is needed")
    }
}

/// An error as an operator reads it.
fn told(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("no answer within {} s", ANSWER_MAX.as_secs()),
        ureq::Error::HostNotFound => "no address is known for its host".to_owned(),
        ureq::Error::Io(error) if error.get_ref().is_none() => error.kind().to_string(),
        other => other.to_string(),
    }
}

/// Whether TLS failed, rather than the way to it.
fn is_of_tls(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        ureq::Error::Io(error) => error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()),
        _ => false,
    }
}

fn clock(theirs: Option<SystemTime>, ours: SystemTime) -> Finding {
    let Some(theirs) = theirs else { return Finding::skip("its answers carry no date") };
    let (skew, slow) = match theirs.duration_since(ours) {
        Ok(behind) => (behind, true),
        Err(ahead) => (ahead.duration(), false),
    };
    let says = format!(
        "this machine's clock is {} s {} the coordinator's",
        skew.as_secs(),
        if slow { "behind" } else { "ahead of" }
    );
    let next = "let the system set its clock from the network (NTP)";
    if skew <= SKEW_PASS {
        Finding::pass("the clocks agree")
    } else if slow && skew >= SKEW_FAIL {
        Finding::fail(says, next)
    } else {
        Finding::warn(says, next)
    }
}

#[expect(clippy::disallowed_methods, reason = "the doctor is a shell: it compares clocks")]
fn now() -> SystemTime {
    SystemTime::now()
}

// ---- ready, eligible ----

fn ready(patient: &Patient) -> Finding {
    let answer = match get(&patient.config.coordinator, routes::READY) {
        Ok(answer) => answer,
        Err(error) => return Finding::fail(told(&error), "ask its operator"),
    };
    if answer.status == StatusCode::OK {
        return Finding::pass("it serves");
    }
    let failing = serde_json::from_slice::<Ready>(&answer.body).map_or_else(
        |_| format!("status {}", answer.status.as_u16()),
        |ready| {
            let bad = ready.checks.into_iter().filter(|check| !check.ok).map(|check| check.name);
            bad.collect::<Vec<_>>().join(", ")
        },
    );
    Finding::fail(format!("it is not ready: {failing}"), "wait a moment, then ask its operator")
}

/// What the coordinator says of one model of this node (`GET /api/v1/providers/{id}?explain=1`).
#[derive(Debug, Deserialize)]
struct Explanation {
    model: String,
    would_serve: bool,
    #[serde(default)]
    why: Option<String>,
}

/// What the coordinator says of this node; the rest of its view is of no concern here.
#[derive(Debug, Deserialize)]
struct Explained {
    #[serde(default)]
    explain: Option<Vec<Explanation>>,
}

fn eligible(patient: &Patient) -> Finding {
    let runs = HomeLock::is_taken(patient.home());
    let Some(provider) = patient.provider() else { return Finding::skip("this node has no key yet") };
    let path = format!("{}?explain=1", routes::provider(provider));
    match get(&patient.config.coordinator, &path) {
        Ok(answer) if answer.status == StatusCode::NOT_FOUND => not_connected(provider, runs),
        Ok(answer) if answer.status.is_success() => explained(&answer.body),
        Ok(answer) => Finding::warn(
            format!("the coordinator answers with status {}", answer.status.as_u16()),
            "ask again in a moment",
        ),
        Err(error) => Finding::warn(told(&error), "ask again in a moment"),
    }
}

fn not_connected(provider: ProviderId, runs: bool) -> Finding {
    if runs {
        Finding::fail(
            format!("the coordinator knows no {provider}, though the node runs"),
            "see node.registered; does the node talk to another coordinator than this one?",
        )
    } else {
        Finding::skip("not connected: no node runs here")
    }
}

fn explained(body: &[u8]) -> Finding {
    let Ok(Explained { explain }) = serde_json::from_slice(body) else {
        return Finding::warn("the coordinator's answer does not read", "update this software");
    };
    let Some(models) = explain else { return Finding::skip("this coordinator does not explain itself") };
    let serving = models.iter().filter(|model| model.would_serve).count();
    let reasons: Vec<String> = models
        .iter()
        .filter(|model| !model.would_serve)
        .map(|Explanation { model, why, .. }| {
            format!("`{model}`: {}", why.as_deref().unwrap_or("the coordinator gives no reason"))
        })
        .collect();
    let told = reasons.join("; ");
    match (serving, reasons.len()) {
        (0, 0) => Finding::fail(
            "the coordinator sees no model of this node",
            "see models.* and `ram-provider status`",
        ),
        (_, 0) => Finding::pass("the coordinator would give it work for each of its models"),
        (0, _) => Finding::fail(told, "change what the reason names; a full node gets work again by itself"),
        _ => Finding::warn(told, "the other models get work"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_a_little_and_a_slow_one_is_worse_than_a_fast_one() {
        let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let check = |seconds: i64, expected| {
            let span = Duration::from_secs(seconds.unsigned_abs());
            let theirs = if seconds < 0 { ours - span } else { ours + span };
            let finding = clock(Some(theirs), ours);
            assert_eq!(finding.outcome, expected, "{finding:?}");
        };
        check(0, Outcome::Pass);
        check(30, Outcome::Pass);
        check(-30, Outcome::Pass);
        check(31, Outcome::Warn);
        check(-3600, Outcome::Warn);
        check(240, Outcome::Fail);
        assert_eq!(clock(None, ours).outcome, Outcome::Skipped);
        assert!(clock(Some(ours + SKEW_FAIL), ours).says.contains("240 s behind"));
    }

    #[test]
    fn the_coordinators_own_reason_is_passed_on() {
        let check = |body: &str, outcome, part: &str| {
            let finding = explained(body.as_bytes());
            assert_eq!(finding.outcome, outcome, "{finding:?}");
            assert!(finding.says.contains(part), "{finding:?}");
        };
        let good = r#"{"model":"a/b","would_serve":true,"refusal":null,"why":null,"queued":0}"#;
        let bad =
            r#"{"model":"c","would_serve":false,"refusal":{"reason":"draining"},"why":"it is draining"}"#;
        check(&format!(r#"{{"explain":[{good}]}}"#), Outcome::Pass, "each");
        check(&format!(r#"{{"explain":[{good},{bad}]}}"#), Outcome::Warn, "`c`: it is draining");
        check(&format!(r#"{{"explain":[{bad}]}}"#), Outcome::Fail, "it is draining");
        check(r#"{"explain":[]}"#, Outcome::Fail, "no model");
        check(r#"{"id":"p_0"}"#, Outcome::Skipped, "does not explain");
        check("<html>", Outcome::Warn, "does not read");
    }

    #[test]
    fn a_hostile_coordinator_does_not_reach_the_terminal() {
        let body =
            r#"{"explain":[{"model":"\u001b]0;x\u0007","would_serve":false,"why":"\u001b[2Jgone\r"}]}"#;
        let finding = explained(body.as_bytes());
        assert!(finding.says.contains("gone") && !finding.says.contains(char::is_control), "{finding:?}");
    }

    #[test]
    fn only_what_stays_here_needs_no_certificate() {
        let check = |url: &str, expected| assert_eq!(tls(&url.parse().unwrap()).outcome, expected, "{url}");
        check("wss://ram.example", Outcome::Pass);
        check("ws://127.0.0.1:8080", Outcome::Pass);
        check("ws://ram.example", Outcome::Warn);
    }
}
