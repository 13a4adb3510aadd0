//! A provider that does as the prompt says: what the client suites need to see each kind of answer.

use std::time::Duration;

use ram_core::chat::tools::ToolCall;
use ram_core::chat::{ChatMessage, Role};
use ram_core::job::{Failure, FinishReason, Job, Outcome, TokenLogprob, Usage};
use ram_core::provider::{Load, Thermal};
use ram_core::units::{Bytes, TokenCount};
use ram_proto::control::{Chunk, ToCoordinator, ToProvider};

use super::fake::{FakeProvider, Run};

/// Longest conversation that this provider's model would hold, in bytes.
const CONTEXT_BYTES: usize = 8000;
/// Well within the time after which the coordinator gives a silent provider up.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// What happens in an answer, in order.
enum Act {
    /// One token of content.
    Say(String),
    /// One token of reasoning.
    Think(&'static str),
    /// A call of a function with these arguments.
    Call(String, String),
    /// It is over.
    End(FinishReason),
    /// It breaks off.
    Fail(Failure),
}

/// Serves until the coordinator closes the socket.
pub(crate) async fn serve(mut provider: FakeProvider) {
    let mut beat = tokio::time::interval(BEAT_EVERY);
    loop {
        tokio::select! {
            message = provider.hear() => match message {
                Some(ToProvider::Run { attempt, job, .. }) => answer(&mut provider, Run::new(attempt, *job)).await,
                Some(ToProvider::Cancel { job, attempt }) => {
                    let outcome = Outcome::Failed { failure: Failure::Cancelled };
                    provider.say(&ToCoordinator::Finished { job, attempt, outcome }).await;
                }
                Some(_) => {}
                None => return,
            },
            _ = beat.tick() => provider.say(&heartbeat()).await,
        }
    }
}

fn heartbeat() -> ToCoordinator {
    let load =
        Load { running: 0, queued: 0, slots: 4, memory_free: Bytes::from_gib(8), thermal: Thermal::Nominal };
    ToCoordinator::Heartbeat { load, memory_cap: Bytes::from_gib(8), offers: super::fake::offers() }
}

async fn answer(provider: &mut FakeProvider, mut run: Run) {
    let bytes: usize = run.job.messages.iter().map(|message| message.content.as_str().len()).sum();
    if bytes > CONTEXT_BYTES {
        let (prompt, limit) = (TokenCount::new(bytes as u64), TokenCount::new(CONTEXT_BYTES as u64));
        let failure = Failure::ContextLengthExceeded { prompt, limit };
        return provider.end(&run, Outcome::Failed { failure }).await;
    }
    let acts = acts(&run.job);
    if !matches!(acts[0], Act::Fail(_)) {
        provider.accept(&run).await;
    }
    let mut usage = Usage { prompt: TokenCount::new(12), ..Usage::default() };
    for act in acts {
        let finish = match act {
            Act::End(finish) => finish,
            Act::Fail(failure) => return provider.end(&run, Outcome::Failed { failure }).await,
            _ if usage.completion == run.job.params.max_tokens => FinishReason::Length,
            act => {
                usage.completion += TokenCount::new(1);
                usage.reasoning += TokenCount::new(u64::from(matches!(act, Act::Think(_))));
                let chunk = chunk(&mut run, act, usage.completion);
                provider.say(&ToCoordinator::Chunk(chunk)).await;
                continue;
            }
        };
        return provider.end(&run, Outcome::Done { finish, usage }).await;
    }
}

/// One token of an answer; `number` tells its calls apart.
fn chunk(run: &mut Run, act: Act, number: TokenCount) -> Chunk {
    let mut chunk = run.chunk();
    match act {
        Act::Say(word) => {
            let alternatives = run.job.params.sampling.top_logprobs;
            chunk.logprobs.extend(alternatives.map(|count| probability(&word, count)));
            chunk.content = word.into();
        }
        Act::Think(word) => chunk.reasoning = word.into(),
        Act::Call(name, arguments) => {
            let id = format!("call_{}_{number}", run.id);
            chunk.tool_calls =
                vec![ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() }];
        }
        Act::End(_) | Act::Fail(_) => {}
    }
    chunk
}

fn probability(word: &str, alternatives: u8) -> TokenLogprob {
    let token = |logprob| TokenLogprob {
        token: word.into(),
        bytes: word.as_bytes().to_vec(),
        logprob,
        top: Vec::new(),
    };
    TokenLogprob { top: (0..alternatives).map(|_| token(-1.5)).collect(), ..token(-0.5) }
}

/// What the last turn of the conversation asks for.
fn acts(job: &Job) -> Vec<Act> {
    let last = job.messages.last().unwrap();
    let asked = last.content.as_str();
    let stop = Act::End(FinishReason::Stop);
    if last.role == Role::Tool {
        return said(job, &format!("It is {asked}."));
    }
    if !job.tools.is_empty() && asked.contains("weather") {
        let cities = ["Paris", "Rome"].into_iter().filter(|city| asked.contains(city));
        let call = |city| Act::Call(job.tools[0].name().to_owned(), format!("{{\"city\": \"{city}\"}}"));
        return cities.map(call).chain([Act::End(FinishReason::ToolCalls)]).collect();
    }
    match asked {
        "Think first." => vec![Act::Think("France,"), Act::Think(" so"), Act::Say("Paris".to_owned()), stop],
        "Say nothing." => vec![stop],
        "Say one long line." => vec![Act::Say("x".repeat(50_000)), Act::Say("x".repeat(100_000)), stop],
        "Who speaks?" => said(job, &speakers(&job.messages)),
        "Be full." => vec![Act::Fail(Failure::Overloaded)],
        "Break off." => {
            vec![Act::Say("one ".to_owned()), Act::Say("two ".to_owned()), Act::Fail(Failure::Internal)]
        }
        "Never end." => vec![Act::Say("And ".to_owned())],
        _ => match asked.strip_prefix("Repeat: ") {
            Some(words) => said(job, words),
            None if job.params.sampling.temperature == 0.0 => said(job, "The capital of France is Paris."),
            None => said(job, &format!("By seed {}: Paris.", job.params.sampling.seed)),
        },
    }
}

/// These words, up to a stop string.
fn said(job: &Job, text: &str) -> Vec<Act> {
    let end = job.params.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    let words = text[..end.unwrap_or(text.len())].split_inclusive(' ').map(|word| Act::Say(word.to_owned()));
    words.chain([Act::End(FinishReason::Stop)]).collect()
}

fn speakers(messages: &[ChatMessage]) -> String {
    let speaker = |message: &ChatMessage| {
        let role = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        message.name.as_ref().map_or_else(|| role.to_owned(), |name| format!("{role}({})", name.as_str()))
    };
    messages.iter().map(speaker).collect::<Vec<_>>().join(" ")
}
