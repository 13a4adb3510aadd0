//! An OpenAI server inside of one's own program: `cargo run -p ram-provider --example local`.
//!
//! Asks itself one question over HTTP, as any OpenAI client would, prints the answer, and stops.

use std::io::Write;
use std::net::SocketAddr;

use ram_proto::openai::ChatCompletion;
use ram_proto::routes;
use ram_provider::config::ProviderConfig;
use ram_provider::local::{LocalConfig, LocalServer};
use tokio::sync::oneshot;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let home = tempfile::tempdir()?;
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let local = LocalConfig { listen: any_port, ..LocalConfig::default() };
    let server = LocalServer::start(ProviderConfig::new(home.path()), local).await?;
    let url = format!("http://{}{}", server.address(), routes::CHAT_COMPLETIONS);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async { stopped.await.unwrap_or(()) }));

    let question = "What is the capital of France?";
    let body = serde_json::json!({
        "model": "ram-demo",
        "messages": [{ "role": "user", "content": question }],
        "temperature": 0,
    });
    let answer: ChatCompletion = reqwest::Client::new().post(url).json(&body).send().await?.json().await?;
    let words = answer.choices[0].message.content.as_ref().map_or("", |content| content.as_str());
    writeln!(std::io::stdout(), "{question}\n{words}")?;

    let _ = stop.send(()); // the server listens for it until it has stopped
    serving.await?;
    Ok(())
}
