//! `/api/v1/e2e`: requests that their provider alone can read, in two phases.
//!
//! ```text
//! init    what is asked for, without a word  -> a provider, its key, its statement: an offer, good for a while, once
//! submit  the prompt, sealed to that key     -> the answer's boxes, in one piece or as they come
//! ```
//!
//! Boxes go through as the text that they came as: nothing here decodes one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use ram_core::catalog;
use ram_core::id::{JobId, ModelId, ProviderId};
use ram_core::units::{Timestamp, TokenCount};
use ram_proto::blob::Blob;
use ram_proto::control::sealed::{PROMPT_BYTES_MAX, SealedPrompt};
use ram_proto::openai::{ApiError, DEFAULT_MAX_TOKENS, HELD_BACK, KEEP_ALIVE_EVERY, sse};
use ram_proto::rest::{E2eAnswer, E2eEvent, E2eInit, E2eOffer, E2eSubmit};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::idempotency::Owner;
use crate::run::{self, Replies};
use crate::state::{JobError, Payer, Reply, Request, Sealed, Submission};

use super::auth::Called;
use super::chat::ACCEL_BUFFERING;
use super::choices::Charged;
use super::error::{Refusal, of_job};
use super::{Client, Gateway};

/// How long an offer stands: a person may be asked whether the provider's fingerprint is right.
const OFFER_LASTS: Duration = Duration::from_secs(120);
/// Offers that stand at once, of all callers and of one: of more, the oldest are forgotten.
const OFFERS_MAX: usize = 16_384;
const OFFERS_OF_ONE_MAX: usize = 64;
/// Boxes of an answer that is told in one piece: one for each token at most, of a long answer.
const BOXES_MAX: usize = 65_536;

/// Offers that stand.
#[derive(Debug, Default)]
pub(super) struct Offers(Mutex<Standing>);

#[derive(Debug, Default)]
struct Standing {
    offers: BTreeMap<JobId, Offered>,
    /// The same, oldest first; those that were taken up are passed over.
    queue: VecDeque<JobId>,
    of_one: HashMap<Owner, VecDeque<JobId>>,
}

#[derive(Debug)]
struct Offered {
    owner: Owner,
    until: Timestamp,
    version: u8,
    model: ModelId,
    provider: ProviderId,
    max_tokens: TokenCount,
    temperature: Option<f32>,
}

impl Offers {
    fn put(&self, job: JobId, offered: Offered, now: Timestamp) {
        let mut standing = self.0.lock().unwrap_or_else(PoisonError::into_inner); // entries are whole
        let of_one = standing.of_one.entry(offered.owner.clone()).or_default();
        of_one.push_back(job);
        let surplus = if of_one.len() > OFFERS_OF_ONE_MAX { of_one.pop_front() } else { None };
        if let Some(surplus) = surplus {
            standing.offers.remove(&surplus);
        }
        standing.queue.push_back(job);
        standing.offers.insert(job, offered);
        while let Some(oldest) = standing.queue.front() {
            let is_good = standing.offers.get(oldest).is_some_and(|offered| offered.until > now);
            if is_good && standing.queue.len() <= OFFERS_MAX {
                break;
            }
            standing.queue.pop_front().and_then(|oldest| standing.forget(oldest));
        }
    }

    /// An offer, which is gone with this; `None` of another's, of one that was taken up, and of one that is over.
    fn take(&self, job: JobId, owner: &Owner, now: Timestamp) -> Option<Offered> {
        let mut standing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        standing.offers.get(&job).filter(|offered| offered.owner == *owner)?;
        standing.forget(job).filter(|offered| offered.until > now)
    }
}

impl Standing {
    fn forget(&mut self, job: JobId) -> Option<Offered> {
        let offered = self.offers.remove(&job)?;
        if let Some(of_one) = self.of_one.get_mut(&offered.owner) {
            of_one.retain(|other| *other != job);
            if of_one.is_empty() {
                self.of_one.remove(&offered.owner);
            }
        }
        Some(offered)
    }
}

pub(super) async fn providers(State(gateway): State<Gateway>) -> Result<Response, Refusal> {
    let front = &gateway.front;
    front.e2e_providers.take(async || gateway.handle.ask(|core, _| core.e2e_providers()).await).await
}

pub(super) async fn init(
    State(gateway): State<Gateway>,
    Extension(Client(address)): Extension<Client>,
    Called(caller): Called,
    body: Bytes,
) -> Result<Json<E2eOffer>, Refusal> {
    let E2eInit { model, max_tokens, temperature, version, preferred_provider } = read(&body)?;
    let version = version.unwrap_or(1);
    if !(1..=2).contains(&version) {
        return Err(ApiError::invalid_request("version", "`version` is 1 or 2").into());
    }
    if max_tokens == Some(0) {
        return Err(ApiError::invalid_request("max_tokens", "`max_tokens` is a number from 1").into());
    }
    if temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
        return Err(ApiError::invalid_request("temperature", "`temperature` is a number from 0 to 2").into());
    }
    // The core refuses a model that the catalogue does not know, so what its context holds does not matter here.
    let context = catalog::resolve(model.as_str()).map_or(TokenCount::MAX, |spec| spec.context());
    let answer = max_tokens.map_or(DEFAULT_MAX_TOKENS, |most| TokenCount::new(most.into())).min(context);
    let offer = move |core: &crate::state::Coordinator, now| {
        core.offer_sealed(&model, answer, preferred_provider, now)
    };
    let (model, provider) = gateway.handle.ask(offer).await?.map_err(of_job)?;
    let (job, now) = (run::random_job_id()?, run::now());
    let offered = Offered {
        owner: Owner::of(&caller, address),
        until: now.after(OFFER_LASTS),
        version,
        model: model.clone(),
        provider: provider.provider_id,
        max_tokens: answer,
        temperature: temperature.map(narrow),
    };
    gateway.front.offers.put(job, offered, now);
    Ok(Json(E2eOffer { job_id: job, version, model, expires_in: OFFER_LASTS.as_secs(), provider }))
}

pub(super) async fn submit(
    State(gateway): State<Gateway>,
    Extension(Client(address)): Extension<Client>,
    Called(caller): Called,
    body: Bytes,
) -> Result<Response, Refusal> {
    let submit: E2eSubmit = read(&body)?;
    drop(body);
    let (job, owner) = (submit.job_id, Owner::of(&caller, address));
    let gone = || ApiError { param: Some("job_id".to_owned()), ..ApiError::not_found("offer") };
    let offered = gateway.front.offers.take(job, &owner, run::now()).ok_or_else(gone)?;
    let stream = submit.stream;
    if stream && offered.version == 1 {
        return Err(ApiError::unsupported("stream", "version 1 has one answer, and does not stream").into());
    }
    let Offered { version, model, provider, max_tokens, temperature, .. } = offered;
    let prompt = prompt(submit, version)?;
    let payer = Payer::of(caller, address);
    let sealed = Sealed { prompt, max_tokens, temperature, provider };
    let submission = Submission { job, payer, model, request: Request::Sealed(sealed), preferred: None };
    let answer =
        Answer { replies: gateway.handle.submit(submission).await?, job, charged: Charged::default() };
    let charged = answer.charged.clone();
    let told = if stream { answer.stream().await } else { answer.whole(version).await };
    let mut response = told.unwrap_or_else(|error| Refusal(error).into_response());
    response.extensions_mut().insert(charged);
    Ok(response)
}

/// A prompt in its box, as the version has it.
fn prompt(submit: E2eSubmit, version: u8) -> Result<SealedPrompt, ApiError> {
    let E2eSubmit { encrypted_prompt_b64: ciphertext, prompt_nonce_b64, client_public_key_b64: key, .. } =
        submit;
    let exact = |blob: &Blob, bytes: usize, name: &str| match blob.len() {
        length if length == bytes => Ok(()),
        _ => Err(ApiError::invalid_request(name, format!("`{name}` has {bytes} bytes"))),
    };
    if ciphertext.len() > PROMPT_BYTES_MAX {
        let name = "encrypted_prompt_b64";
        return Err(ApiError::invalid_request(
            name,
            format!("`{name}` has at most {PROMPT_BYTES_MAX} bytes"),
        ));
    }
    exact(&key, 32, "client_public_key_b64")?;
    match (version, prompt_nonce_b64) {
        (1, Some(nonce)) => {
            exact(&nonce, 12, "prompt_nonce_b64")?;
            Ok(SealedPrompt::V1 { ciphertext, nonce, client_key: key })
        }
        (1, None) => Err(ApiError::invalid_request("prompt_nonce_b64", "version 1 needs the prompt's nonce")),
        _ => Ok(SealedPrompt::V2 { ciphertext, enc: key }),
    }
}

/// An answer in boxes. Dropping it before its end abandons the job.
struct Answer {
    replies: Replies,
    job: JobId,
    charged: Charged,
}

/// What comes next of it.
enum Next {
    Event(E2eEvent),
    End(E2eEvent),
    Failed(ApiError),
}

impl Answer {
    /// The next box, or the end. Cancel-safe.
    async fn next(&mut self) -> Next {
        loop {
            return match self.replies.next().await {
                Some(Reply::Started { .. }) => continue,
                Some(Reply::Sealed { nonce: output_nonce_b64, sealed, last }) => {
                    let encrypted_chunk_b64 = Some(sealed);
                    Next::Event(E2eEvent {
                        output_nonce_b64,
                        encrypted_chunk_b64,
                        last,
                        ..E2eEvent::default()
                    })
                }
                Some(Reply::Done { usage, receipt, .. }) => {
                    self.charged.set();
                    Next::End(E2eEvent {
                        usage: Some(usage.into()),
                        xram_job_id: Some(self.job),
                        xram_tokens_charged: Some(receipt.charge),
                        ..E2eEvent::default()
                    })
                }
                Some(Reply::Failed { error, receipt }) => {
                    let was_charged =
                        receipt.is_some_and(|receipt| receipt.charge > ram_core::units::XRam::ZERO);
                    Next::Failed(self.fail(of_job(error), was_charged))
                }
                // A sealed job has no words; and without any reply this reader was too slow.
                Some(Reply::Delta { .. }) | None => Next::Failed(self.fail(ApiError::internal(), true)),
            };
        }
    }

    fn fail(&self, error: ApiError, was_charged: bool) -> ApiError {
        if was_charged {
            self.charged.set();
            return error.after_charge();
        }
        error
    }

    /// Gathers the answer.
    async fn whole(mut self, version: u8) -> Result<Response, ApiError> {
        let (mut nonce, mut boxes) = (Blob::default(), Vec::new());
        let end = loop {
            match self.next().await {
                Next::Event(event) => {
                    nonce = event.output_nonce_b64.unwrap_or(nonce);
                    boxes.extend(event.encrypted_chunk_b64);
                    if boxes.len() > BOXES_MAX {
                        return Err(self.fail(ApiError::internal(), true));
                    }
                }
                Next::End(end) => break end,
                Next::Failed(error) => return Err(error),
            }
        };
        let is_one = version == 1;
        let answer = E2eAnswer {
            encrypted: true,
            encrypted_output_b64: if is_one { boxes.pop() } else { None },
            output_nonce_b64: nonce,
            encrypted_chunks_b64: boxes,
            usage: end.usage.ok_or_else(ApiError::internal)?,
            xram_job_id: self.job,
            xram_tokens_charged: end.xram_tokens_charged.ok_or_else(ApiError::internal)?,
        };
        Ok(Json(answer).into_response())
    }

    /// Waits for the first box, then streams; an error before it keeps its status.
    async fn stream(mut self) -> Result<Response, ApiError> {
        let first = match timeout(HELD_BACK, self.next()).await.ok() {
            Some(Next::Failed(error)) => return Err(error),
            heard => heard,
        };
        let events = futures::stream::unfold(Some((self, Some(first))), |state| async move {
            let (mut answer, first) = state?;
            let heard = match first {
                Some(first) => first,
                None => timeout(KEEP_ALIVE_EVERY, answer.next()).await.ok(),
            };
            Some(match heard {
                None => (sse::KEEP_ALIVE.to_owned(), Some((answer, None))),
                Some(Next::Event(event)) => (data(&event), Some((answer, None))),
                Some(Next::End(end)) => (data(&end) + sse::DONE, None),
                Some(Next::Failed(error)) => (sse::error(&error), None),
            })
        });
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (ACCEL_BUFFERING, HeaderValue::from_static("no")),
        ];
        Ok((headers, Body::from_stream(events.map(Ok::<_, Infallible>))).into_response())
    }
}

/// The frame of an event.
fn data(event: &E2eEvent) -> String {
    sse::data(&serde_json::to_string(event).expect("an event is plain data"))
}

/// A number between 0 and 2, as samplers take it.
#[expect(clippy::cast_possible_truncation, reason = "the nearest is meant")]
const fn narrow(number: f64) -> f32 {
    number as f32
}

/// Reads a body; what it held is not told again.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        ApiError::malformed_body(format!(
            "the body does not read at line {line}, column {column}: see /openapi.json"
        ))
    })
}

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        Self(of_job(error))
    }
}
