//! `POST /v1/chat/completions`: from a body to an answer, in one piece or as it is written.
//!
//! A stream's status and headers are held back until there is a first word, an error, or [`HELD_BACK`] have passed, so
//! that fail-over among providers stays invisible and errors keep their real status. After that only events can tell:
//! an error is the last event then, and no `[DONE]` follows it.
//!
//! Whoever leaves, leaves by dropping: the connection's future owns the [`Choices`], whose end the core hears of.

use std::convert::Infallible;
use std::ops::ControlFlow;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use ram_core::catalog;
use ram_core::id::JobId;
use ram_core::units::TokenCount;
use ram_proto::openai::{
    ApiError, Asked, ChatCompletion, ChatRequest, CompletionHead, CompletionId, Delivery, HELD_BACK,
    IGNORED_FIELDS_HEADER, KEEP_ALIVE_EVERY, OpenStream, ParsedChat, StreamedAnswer, WholeAnswer,
};
use tokio::time::timeout;

use crate::run::{self, Gone};
use crate::state::{Payer, Plain, Request, Submission};

use super::auth::Called;
use super::choices::Choices;
use super::error::Refusal;
use super::{Client, Gateway, RequestId};

/// Header that names the fields without effect.
pub(super) const IGNORED_FIELDS: HeaderName = HeaderName::from_static(IGNORED_FIELDS_HEADER);
/// Tells nginx not to gather a stream.
pub(super) const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(super) async fn complete(
    State(gateway): State<Gateway>,
    Extension(Client(address)): Extension<Client>,
    Extension(RequestId(job)): Extension<RequestId>,
    Called(caller): Called,
    body: Bytes,
) -> Result<Response, Refusal> {
    let parsed = ChatRequest::parse(&body)?;
    drop(body);
    let ignored = parsed.ignored_header();
    let ParsedChat { request, .. } = parsed;
    let (delivery, n) = (request.delivery, request.n);
    let head = CompletionHead { id: CompletionId(job), created: run::now(), model: request.model.clone() };
    let asked = Asked::from(&request);
    let payer = Payer::of(caller, address);
    let choices = submit(&gateway, request, &payer, job).await?;
    let charged = choices.charged();
    let told = match delivery {
        Delivery::Whole => {
            let answer = WholeAnswer::new(head, asked, n);
            whole(answer, choices).await.map(|completion| Json(completion).into_response())
        }
        Delivery::Stream { .. } => stream(StreamedAnswer::new(head, asked, n), choices).await,
    };
    let mut response = told.unwrap_or_else(|error| Refusal(error).into_response());
    response.extensions_mut().insert(charged);
    if let Some(ignored) = ignored.and_then(|names| HeaderValue::try_from(names).ok()) {
        response.headers_mut().insert(IGNORED_FIELDS, ignored);
    }
    Ok(response)
}

/// Submits each choice as a job; the first has the request's number.
async fn submit(gateway: &Gateway, request: ChatRequest, payer: &Payer, job: JobId) -> Result<Choices, Gone> {
    // The core refuses a model that the catalogue does not know, so what its context holds does not matter here.
    let context = catalog::resolve(request.model.as_str()).map_or(TokenCount::MAX, |spec| spec.context());
    let fresh_seed = run::random_seed()?;
    let mut replies = Vec::with_capacity(request.n.get().into());
    for choice in 0..u32::from(request.n.get()) {
        let submission = Submission {
            job: if choice == 0 { job } else { run::random_job_id()? },
            payer: payer.clone(),
            model: request.model.clone(),
            request: Request::Plain(Box::new(Plain {
                messages: request.messages.clone(),
                tools: request.tools.clone(),
                chat_template_kwargs: request.chat_template_kwargs.clone(),
                params: request.params(choice, context, fresh_seed),
            })),
            preferred: request.preferred_provider,
        };
        replies.push(gateway.handle.submit(submission).await?);
    }
    Ok(Choices::new(job, replies))
}

/// Gathers an answer.
async fn whole(mut answer: WholeAnswer, mut choices: Choices) -> Result<ChatCompletion, ApiError> {
    loop {
        match answer.hear(choices.next().await) {
            ControlFlow::Continue(more) => answer = more,
            ControlFlow::Break(told) => return told,
        }
    }
}

/// Waits for the first word, then streams; an error before it keeps its status.
async fn stream(answer: StreamedAnswer, mut choices: Choices) -> Result<Response, ApiError> {
    let heard = timeout(HELD_BACK, choices.next()).await.ok();
    let (first, stream) = answer.open(heard)?;
    let frames = futures::stream::once(async { first }).chain(rest(stream, choices));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(frames.map(Ok::<_, Infallible>))).into_response())
}

/// The frames behind the first.
fn rest(stream: OpenStream, choices: Choices) -> impl Stream<Item = String> {
    futures::stream::unfold((stream, choices), |(mut stream, mut choices)| async move {
        if stream.is_over() {
            return None;
        }
        let heard = timeout(KEEP_ALIVE_EVERY, choices.next()).await.ok();
        Some((stream.hear(heard), (stream, choices)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Replies;
    use crate::state::{JobError, Receipt, Reply};
    use ram_core::chat::PromptText;
    use ram_core::id::NodeKey;
    use ram_core::job::{Failure, FinishReason, Usage};
    use ram_core::units::XRam;
    use ram_proto::openai::sse;
    use std::num::NonZeroU8;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    fn head() -> CompletionHead {
        CompletionHead {
            id: CompletionId(JobId::from_bits(1)),
            created: ram_core::units::Timestamp::ZERO,
            model: "ram-demo".parse().unwrap(),
        }
    }

    fn streamed(usage: bool) -> StreamedAnswer {
        StreamedAnswer::new(head(), Asked { usage, ..Asked::default() }, NonZeroU8::MIN)
    }

    fn gathered() -> WholeAnswer {
        WholeAnswer::new(head(), Asked::default(), NonZeroU8::MIN)
    }

    fn started() -> Reply {
        let provider = NodeKey::from_bytes([7; 32]).provider_id();
        Reply::Started { provider, name: "node".parse().unwrap(), prompt: TokenCount::new(9) }
    }

    fn delta(text: &str) -> Reply {
        Reply::Delta {
            content: text.into(),
            reasoning: PromptText::default(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
        }
    }

    fn receipt(charge: u128) -> Receipt {
        let charge = XRam::from_units(charge);
        Receipt { charge, price_per_1k: XRam::from_milli_xram(100), remaining: None }
    }

    fn done() -> Reply {
        let usage = Usage { prompt: TokenCount::new(9), completion: TokenCount::new(2), ..Usage::default() };
        Reply::Done { finish: FinishReason::Stop, usage, receipt: receipt(5) }
    }

    fn failed(charge: u128) -> Reply {
        let error = JobError::Provider { failure: Failure::ProviderLost };
        Reply::Failed { error, receipt: Some(receipt(charge)) }
    }

    /// One choice whose replies the test sends.
    fn scripted() -> (mpsc::Sender<Reply>, mpsc::UnboundedReceiver<JobId>, Choices) {
        let job = JobId::from_bits(1);
        let (sender, left, replies) = Replies::scripted(job);
        (sender, left, Choices::new(job, vec![replies]))
    }

    /// All frames that these replies become.
    async fn frames(replies: Vec<Reply>, include_usage: bool) -> String {
        let (sender, _left, choices) = scripted();
        for reply in replies {
            sender.try_send(reply).unwrap();
        }
        drop(sender);
        let response = stream(streamed(include_usage), choices).await.unwrap();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_whole_stream_has_one_opening_one_end_and_one_done() {
        let text = frames(vec![started(), delta("Par"), delta("is"), done()], false).await;
        assert_eq!(text.matches("\"role\":\"assistant\"").count(), 1);
        assert_eq!(text.matches("\"finish_reason\":\"stop\"").count(), 1);
        assert_eq!(text.matches("\"xram_tokens_charged_exact\":\"0.000000000000000005\"").count(), 1);
        assert_eq!(text.matches(sse::DONE).count(), 1);
        assert!(text.ends_with(sse::DONE) && !text.contains("\"usage\""));
    }

    #[tokio::test]
    async fn the_usage_comes_in_a_chunk_without_choices_when_asked_for() {
        let text = frames(vec![started(), delta("Paris"), done()], true).await;
        let last = text.trim_end().rsplit("\n\n").nth(1).unwrap();
        assert!(last.contains("\"choices\":[]") && last.contains("\"total_tokens\":11"), "{last}");
        assert!(last.contains("xram_job_id"));
    }

    #[tokio::test]
    async fn an_error_after_the_first_word_is_the_last_event() {
        let text = frames(vec![started(), delta("Par"), failed(3)], true).await;
        assert_eq!(text.matches("\"error\"").count(), 1);
        assert!(!text.contains("[DONE]"));
        let cut = frames(vec![started(), delta("Par")], false).await; // the loop cut off a slow reader
        assert!(cut.contains("\"error\"") && !cut.contains("[DONE]"));
    }

    #[tokio::test]
    async fn an_answer_of_no_words_is_still_a_whole_stream() {
        let text = frames(vec![started(), done()], false).await;
        assert!(text.contains("\"role\":\"assistant\"") && text.ends_with(sse::DONE));
    }

    #[tokio::test]
    async fn an_error_before_the_first_word_keeps_its_status() {
        let (sender, _left, choices) = scripted();
        sender.try_send(started()).unwrap();
        sender.try_send(failed(0)).unwrap();
        let error = stream(streamed(false), choices).await.unwrap_err();
        assert_eq!((error.status, error.should_retry), (503, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_says_that_it_lives_after_five_seconds_and_every_ten() {
        let (sender, _left, choices) = scripted();
        let began = Instant::now();
        let response = stream(streamed(false), choices).await.unwrap();
        assert_eq!((began.elapsed(), response.status().as_u16()), (HELD_BACK, 200));
        let mut body = response.into_body().into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), sse::KEEP_ALIVE);
        assert_eq!(began.elapsed(), HELD_BACK);
        assert_eq!(body.next().await.unwrap().unwrap(), sse::KEEP_ALIVE);
        assert_eq!(began.elapsed(), HELD_BACK + KEEP_ALIVE_EVERY);
        sender.try_send(delta("Paris")).unwrap();
        assert!(String::from_utf8_lossy(&body.next().await.unwrap().unwrap()).contains("Paris"));
        assert_eq!(began.elapsed(), HELD_BACK + KEEP_ALIVE_EVERY);
    }

    #[tokio::test]
    async fn whoever_leaves_before_the_end_abandons_the_job_and_nobody_else() {
        let (sender, mut left, choices) = scripted();
        sender.try_send(delta("Par")).unwrap();
        drop(stream(streamed(false), choices).await.unwrap());
        assert_eq!(left.try_recv(), Ok(JobId::from_bits(1)));
        let (sender, mut left, choices) = scripted();
        sender.try_send(done()).unwrap();
        whole(gathered(), choices).await.unwrap();
        assert!(left.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_whole_answer_is_all_its_pieces() {
        let (sender, _left, choices) = scripted();
        let thought = Reply::Delta {
            content: "".into(),
            reasoning: "hm".into(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
        };
        for reply in [started(), started(), thought, delta("Par"), delta("is"), done()] {
            sender.try_send(reply).unwrap();
        }
        let completion = whole(gathered(), choices).await.unwrap();
        let message = &completion.choices[0].message;
        assert_eq!(message.content.as_ref().unwrap().as_str(), "Paris");
        assert_eq!(message.reasoning_content.as_ref().unwrap().as_str(), "hm");
        assert_eq!(completion.xram.provider.unwrap().name.as_str(), "node");
    }
}
