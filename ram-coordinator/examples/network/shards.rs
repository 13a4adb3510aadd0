//! A model that no provider has memory for, held by several, and what happens when one of them dies.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ram_coordinator::Running;
use ram_coordinator::state::PIPELINE_WORKLOAD;
use ram_core::catalog;
use ram_core::layers::LayerRange;
use ram_core::units::{ByteRate, Bytes};
use ram_pipeline::plan::{self, Link, Links, ModelNeeds, Node, Objective, Wish};
use ram_proto::rest::{PipelineState, PipelineView};
use serde_json::{Value, json};
use tokio::process::Child;

use crate::{Show, ask, question};

/// The demo model's end of text: ruled out, so that an answer of one sentence becomes one that takes a while.
const END_TOKEN: &str = "1";
/// Tokens of such an answer.
const LONG: u64 = 120;
/// How long a pipeline may take to be whole again.
const WHOLE_WITHIN: Duration = Duration::from_secs(20);

/// What was done to an answer.
pub(crate) struct Killed {
    pub(crate) name: String,
    pub(crate) layers: LayerRange,
    /// Bytes of it that were there.
    pub(crate) after: usize,
    /// The longest time between two pieces.
    pub(crate) pause: Duration,
    pub(crate) same: bool,
}

/// Memory with which it takes so many machines to hold a model: as much as can be, so that little decides nothing.
pub(crate) fn memory_for(model: &str, machines: u8) -> anyhow::Result<Bytes> {
    let needs = ModelNeeds::of(catalog::resolve(model).context("the model is in the catalogue")?);
    let wish = Wish { workload: PIPELINE_WORKLOAD, objective: Objective::Latency };
    let holds = |machines: u8, memory: Bytes| {
        let node = |number| Node::with(number, memory, ByteRate::new(10_000_000_000));
        let nodes: Vec<Node> = (0..machines).map(node).collect();
        plan::choose(&needs, &nodes, &Links::uniform(Link::LAN), &wish).is_ok()
    };
    // The least with which fewer machines would do; just below it, they do not.
    let (mut too_little, mut enough) = (Bytes::ZERO, Bytes::from_gib(64));
    while enough.saturating_sub(too_little) > Bytes::new(1) {
        let middle = Bytes::new((too_little.get() + enough.get()) / 2);
        if holds(machines - 1, middle) {
            enough = middle;
        } else {
            too_little = middle;
        }
    }
    ensure!(holds(machines, too_little), "{model} cannot be split over exactly {machines} machines");
    Ok(too_little)
}

/// The one pipeline of this network, once it is ready.
pub(crate) async fn pipeline(coordinator: &Running) -> anyhow::Result<PipelineView> {
    let ready = async {
        loop {
            let list = coordinator.handle.ask(|core, _| core.pipelines()).await?.pipelines;
            if let Some(view) = list.into_iter().find(|view| view.state == PipelineState::Ready) {
                return anyhow::Ok(view);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WHOLE_WITHIN, ready).await.context("the pipeline was not ready in time")?
}

/// Kills providers, each in the middle of an answer, and holds the answer against an undisturbed one.
pub(crate) async fn kill(
    times: u8,
    words: &str,
    coordinator: &Running,
    key: &str,
    providers: &mut [Child],
    show: &Show,
) -> anyhow::Result<()> {
    let (base_url, body) = (coordinator.base_url(), long(words));
    let whole = ask(&base_url, key, &body, &Show::SILENT, &mut |_| {}).await?;
    for time in 0..times {
        let view = pipeline(coordinator).await?;
        let count = view.shards.len();
        let victim = &view.shards[[count / 2, count - 1, 0][usize::from(time % 3)]];
        let name = victim.name.as_ref().context("who holds a shard is here")?.to_string();
        let number: usize = name.rsplit('-').next().context("a provider has a number")?.parse()?;
        let child = &mut providers[number - 1];
        let (mut after, mut pause, mut last_piece) = (None, Duration::ZERO, Instant::now());
        let mut heard = |text: &str| {
            let now = Instant::now();
            if after.is_some() {
                pause = pause.max(now.duration_since(last_piece));
            } else {
                after = Some(text.len());
                let _ = child.start_kill(); // As good as a power cut: the process says no word more.
                show.dies(&name);
            }
            last_piece = now;
        };
        let answer = ask(&base_url, key, &body, show, &mut heard).await?;
        ensure!(child.wait().await.is_ok_and(|status| !status.success()), "{name} was not killed");
        let after = after.context("the answer is empty")?;
        let killed = Killed { name, layers: victim.layers, after, pause, same: answer.text == whole.text };
        show.killed(&killed);
        ensure!(killed.same, "the answer was another one");
    }
    Ok(())
}

/// A question whose answer takes a while.
fn long(words: &str) -> Value {
    let mut body = question(words);
    body["logit_bias"] = json!({ END_TOKEN: -100 });
    body["max_tokens"] = LONG.into();
    body
}
