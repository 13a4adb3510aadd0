//! The official `openai` Python client against the gateway, where there is a Python that has it.
//!
//! `RAM_TEST_PYTHON` names the interpreter; without it `python3` is tried. A machine without the client skips this test
//! and says so: the build needs nothing but Rust and a C compiler.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use std::io::Write as _;
use std::process::Stdio;

use fake::{AT_MOST, FakeProvider, Network, Run};
use ram_proto::control::ToProvider;
use tokio::process::Command;
use tokio::time::timeout;

#[tokio::test]
async fn the_official_python_client_works_unmodified() {
    let python = std::env::var("RAM_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_client = Command::new(&python).args(["-c", "import openai"]).stderr(Stdio::null()).status().await;
    if !has_client.is_ok_and(|status| status.success()) {
        // Written past the harness, which would keep the words of a test that passes to itself.
        writeln!(
            std::io::stderr(),
            "SKIPPED: {python} has no module `openai`: the official client was NOT tried"
        )
        .unwrap();
        return;
    }
    let network = Network::start().await;
    let provider = network.provider(1).await;
    let serving = tokio::spawn(serve(provider));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py");
    let output = Command::new(&python)
        .arg(script)
        .env("OPENAI_BASE_URL", network.url("/v1"))
        .env("OPENAI_API_KEY", &network.key)
        .output();
    let output = timeout(AT_MOST, output).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serving.abort();
}

/// Answers every job as the script expects.
async fn serve(mut provider: FakeProvider) {
    while let Some(message) = provider.hear().await {
        if let ToProvider::Run { attempt, job } = message {
            let text = format!("seed {}: one two three four", job.params.sampling.seed);
            let end = job.params.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
            let text = text[..end.unwrap_or(text.len())].to_owned();
            let mut run = Run::new(attempt, *job);
            provider.accept(&run).await;
            for word in text.split_inclusive(' ') {
                provider.write(&mut run, word).await;
            }
            provider.finish(&run).await;
        }
    }
}
