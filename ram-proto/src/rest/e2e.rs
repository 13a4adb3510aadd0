//! `/api/v1/e2e`: requests that their provider alone can read, in two phases.
//!
//! Field names are the product's. Version 1 has one prompt and one answer; version 2 streams, too.

use ram_core::id::{JobId, ModelId, NodeName, ProviderId};
use ram_core::units::XRam;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Number;

use crate::blob::Blob;
use crate::control::{NodeStatement, Signature};
use crate::openai::CompletionUsage;

/// `GET /api/v1/e2e/providers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct E2eProviders {
    /// Those online that open sealed prompts, in the order of their ids.
    pub providers: Vec<E2eProvider>,
}

/// A provider that opens sealed prompts, in the coordinator's words and its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct E2eProvider {
    /// Who it is, and the key that prompts are sealed to.
    #[serde(flatten)]
    pub provider: E2eOffered,
    /// What it serves.
    pub models: Vec<ModelId>,
}

/// `POST /api/v1/e2e/init`: what is asked for, without a word of the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct E2eInit {
    /// The model: an alias or a full id.
    pub model: ModelId,
    /// Most tokens of the answer; 2048 when left out.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4_294_967_295_u64))]
    pub max_tokens: Option<u32>,
    /// From 0 to 2, where the sealed prompt does not say. As it was written: rounded to 32 bits, a number just outside
    /// would fall on the bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 2))]
    pub temperature: Option<f64>,
    /// How the prompt will be sealed: 1 when left out, or 2.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2))]
    pub version: Option<u8>,
    /// The provider that should serve this, if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_provider: Option<ProviderId>,
}

/// The answer to [`E2eInit`]: whom to seal the prompt to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct E2eOffer {
    /// The job: its 16 bytes in hex are bound into what is sealed in version 2.
    pub job_id: JobId,
    /// The version that was asked for.
    pub version: u8,
    /// The model, by full id, which is bound likewise.
    pub model: ModelId,
    /// Seconds that the offer stands.
    pub expires_in: u64,
    /// Who will answer.
    #[serde(flatten)]
    pub provider: E2eOffered,
}

/// A provider that prompts can be sealed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct E2eOffered {
    /// Its id.
    pub provider_id: ProviderId,
    /// The name that its operator gave it.
    pub provider_name: NodeName,
    /// The X25519 key to seal to.
    pub provider_public_key_b64: Blob,
    /// What it stated when it joined: whoever checks the signature knows that the key is the node's own.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub statement: NodeStatement,
    /// Ed25519 by the statement's `node_key` over its canonical bytes, in hex.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub signature: Signature,
}

/// `POST /api/v1/e2e/submit`: the prompt in its box. Which fields there are follows from the version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct E2eSubmit {
    /// The job of the offer.
    pub job_id: JobId,
    /// The box.
    pub encrypted_prompt_b64: Blob,
    /// Version 1: 12 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_nonce_b64: Option<Blob>,
    /// The X25519 key that was made for this request; in version 2 HPKE's encapsulated key.
    pub client_public_key_b64: Blob,
    /// Version 2: whether the answer comes as events, each with a box, as it is written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
}

/// A sealed answer in one piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct E2eAnswer {
    /// Always true.
    pub encrypted: bool,
    /// Version 1: the answer's text in its box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted_output_b64: Option<Blob>,
    /// What the box, or the boxes, need to be opened: 12 bytes in version 1, 32 in version 2.
    pub output_nonce_b64: Blob,
    /// Version 2: the boxes in turn, of which the last is the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encrypted_chunks_b64: Vec<Blob>,
    /// What the answer took.
    pub usage: CompletionUsage,
    /// The job.
    pub xram_job_id: JobId,
    /// What it cost.
    pub xram_tokens_charged: XRam,
}

/// One event of a sealed answer that is streamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct E2eEvent {
    /// With the first box: 32 bytes that all need to be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_nonce_b64: Option<Blob>,
    /// The next box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted_chunk_b64: Option<Blob>,
    /// Whether it is the last box.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
    /// Behind the last box: what the answer took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<CompletionUsage>,
    /// With it: the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xram_job_id: Option<JobId>,
    /// And what it cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xram_tokens_charged: Option<XRam>,
}

/// Reads a whole number however it is written: to JSON Schema 2.0 is an integer, too.
fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else { return Ok(None) };
    // A whole float writes itself without a fraction.
    let written = || number.as_f64().map(|float| float.to_string()).and_then(|text| text.parse().ok());
    let whole = number.as_u64().or_else(written).and_then(|whole| T::try_from(whole).ok());
    whole.map(Some).ok_or_else(|| D::Error::custom("expected a whole number within its bounds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_may_be_written_as_a_float() {
        let read = |most: &str| {
            let body = format!(r#"{{"model":"m","max_tokens":{most},"version":2.0}}"#);
            serde_json::from_str::<E2eInit>(&body).map(|init| (init.max_tokens, init.version))
        };
        for (written, expected) in
            [("7", Some(7)), ("7.0", Some(7)), ("4294967295.0", Some(u32::MAX)), ("null", None)]
        {
            assert_eq!(read(written).unwrap(), (expected, Some(2)), "{written}");
        }
        for bad in ["7.5", "-1", "-1.0", "4294967296", "1e30", "\"7\""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
