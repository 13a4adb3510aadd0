//! A client of sealed requests, in version 2, as one is written with `ram-crypto`.

#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use ram_coordinator::config::Config;
use ram_core::units::XRam;
use ram_crypto::exchange::{Chosen, Hearing, Offer, Trust};
use ram_crypto::hpke;
use ram_crypto::statement::Statement;
use ram_proto::blob::Blob;
use ram_proto::openai::{ChunkChoice, sse};
use ram_proto::rest::{E2eAnswer, E2eEvent, E2eOffer, E2eSubmit};
use ram_proto::routes;
use reqwest::Response;
use serde_json::json;

/// A guard against a hang, far beyond what anything here takes.
const AT_MOST: Duration = Duration::from_secs(120);
pub const MODEL: &str = "ram-demo";

/// Who asks.
#[derive(Clone, Debug)]
pub struct Client {
    pub base_url: String,
    pub key: String,
}

impl Client {
    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Response {
        let url = format!("{}{path}", self.base_url);
        let request = reqwest::Client::new().post(url).bearer_auth(&self.key).json(body);
        tokio::time::timeout(AT_MOST, request.send()).await.unwrap().unwrap()
    }

    pub async fn offer(&self, version: u8) -> E2eOffer {
        let wish = json!({ "model": MODEL, "version": version, "max_tokens": 24, "temperature": 0 });
        let response = self.post(routes::E2E_INIT, &wish).await;
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    /// The provider of an offer, its word checked as a client checks it.
    pub fn choose(&self, offer: &E2eOffer) -> Chosen {
        let said = &offer.provider.statement;
        let statement = Statement {
            network: said.network,
            coordinator: said.coordinator.clone(),
            nonce: *said.nonce.as_bytes(),
            node_key: *said.node_key.as_bytes(),
            e2e_key: *said.e2e_key.as_bytes(),
            wallet: said.wallet.map(|wallet| *wallet.as_bytes()),
            name: said.name.as_str().to_owned(),
            expires_ms: said.expires_at.as_millis(),
        };
        let config = Config::default();
        let trust = Trust {
            network: config.network,
            coordinator: &said.coordinator,
            pinned: None,
            now_ms: ram_coordinator::run::now().as_millis(),
            age_max_ms: 0,
        };
        let offer = Offer {
            job: offer.job_id.bits().to_be_bytes(),
            model: offer.model.as_str().to_owned(),
            statement,
            signature: *offer.provider.signature.as_bytes(),
        };
        offer.check(&trust).unwrap()
    }

    /// Asks in version 2.
    pub async fn ask(&self, prompt: &str, stream: bool) -> (Response, hpke::Waiting) {
        let offer = self.offer(2).await;
        let (request, waiting) = self.choose(&offer).seal(prompt.as_bytes()).unwrap();
        (self.post(routes::E2E_SUBMIT, &submit_v2(&offer, &request, stream)).await, waiting)
    }
}

pub fn submit_v2(offer: &E2eOffer, request: &hpke::Request, stream: bool) -> E2eSubmit {
    E2eSubmit {
        job_id: offer.job_id,
        encrypted_prompt_b64: Blob::new(&request.ciphertext),
        prompt_nonce_b64: None,
        client_public_key_b64: Blob::new(&request.enc),
        stream,
    }
}

/// The words of a box.
pub fn words(opened: &[u8]) -> String {
    let choice: ChunkChoice = serde_json::from_slice(opened).unwrap();
    choice.delta.content.map(|content| content.as_str().to_owned()).unwrap_or_default()
}

/// The words of an answer in one piece.
pub async fn whole(response: Response, waiting: hpke::Waiting) -> String {
    assert_eq!(response.status(), 200);
    let answer: E2eAnswer = response.json().await.unwrap();
    let mut hearing = waiting.hear(&answer.output_nonce_b64.to_array().unwrap());
    let (last, before) = answer.encrypted_chunks_b64.split_last().unwrap();
    let text: String =
        before.iter().map(|sealed| words(&hearing.chunk(&sealed.to_bytes()).unwrap())).collect();
    text + &words(&hearing.last(&last.to_bytes()).unwrap())
}

/// The words of a streamed answer, and how many boxes they came in.
pub async fn streamed(response: Response, waiting: hpke::Waiting) -> (String, usize) {
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut decoder = sse::Decoder::new();
    decoder.push(&response.bytes().await.unwrap()).unwrap();
    let (mut waiting, mut hearing, mut text, mut boxes) = (Some(waiting), None::<Hearing>, String::new(), 0);
    let mut is_paid = false;
    while let Some(event) = decoder.next_event() {
        if event.data == sse::DONE_DATA {
            assert!(is_paid && hearing.as_ref().unwrap().is_whole());
            return (text, boxes);
        }
        let event: E2eEvent = serde_json::from_str(&event.data).unwrap();
        if let Some(nonce) = event.output_nonce_b64 {
            hearing = Some(waiting.take().unwrap().hear(&nonce.to_array().unwrap()));
        }
        if let Some(sealed) = event.encrypted_chunk_b64 {
            let (hearing, sealed) = (hearing.as_mut().unwrap(), sealed.to_bytes());
            let opened = if event.last { hearing.last(&sealed) } else { hearing.chunk(&sealed) };
            text += &words(&opened.unwrap());
            boxes += 1;
        }
        is_paid |= event.usage.is_some() && event.xram_tokens_charged > Some(XRam::ZERO);
    }
    panic!("the stream has no end");
}
