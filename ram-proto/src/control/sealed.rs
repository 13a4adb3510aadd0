//! Jobs whose words only their provider and whoever asked can read.
//!
//! ```text
//! coordinator                                      provider
//!    |  -- run_sealed --------------------------->  |   opens the prompt; from here on a job like any other
//!    |  <----------------------------- accepted --  |
//!    |  <--- sealed_chunk (nonce, box 0) ---------  |   boxes in turn; in version 1 there is but the last
//!    |  <--- sealed_chunk (the last box) ---------  |
//!    |  <----------------------------- finished --  |
//! ```
//!
//! Only who has named [`Capability::SEALED_V1`](super::Capability::SEALED_V1) is asked. What stands in the boxes is in
//! [`e2e`](crate::e2e); how they are sealed, in `ram-crypto`.

use ram_core::id::{Attempt, JobId, ModelId};
use ram_core::units::{Bytes, TokenCount};
use serde::{Deserialize, Serialize};

use crate::blob::Blob;

/// Longest box of a prompt: the longest plain text, padded, and a tag.
pub const PROMPT_BYTES_MAX: usize = (4 << 20) + 512;

/// One request that its provider alone can read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SealedJob {
    /// Which job.
    pub id: JobId,
    /// The model, by full id.
    pub model: ModelId,
    /// Most tokens of the answer, reasoning included.
    pub max_tokens: TokenCount,
    /// Divides the logits where the prompt says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// The prompt.
    pub prompt: SealedPrompt,
}

/// A prompt in its box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "version")]
pub enum SealedPrompt {
    /// X25519, HKDF-SHA256, AES-256-GCM (`xram-e2e-v1`).
    #[serde(rename = "1")]
    V1 {
        /// The text, and a tag.
        ciphertext: Blob,
        /// 12 bytes.
        nonce: Blob,
        /// The client's X25519 key.
        client_key: Blob,
    },
    /// HPKE (RFC 9180).
    #[serde(rename = "2")]
    V2 {
        /// The text, padded, and a tag.
        ciphertext: Blob,
        /// The encapsulated key.
        enc: Blob,
    },
}

impl SealedPrompt {
    /// Bytes of the box: as many as the text inside has, or more.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        let (Self::V1 { ciphertext, .. } | Self::V2 { ciphertext, .. }) = self;
        Bytes::new(ciphertext.len() as u64)
    }
}

/// A piece of a sealed answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedChunk {
    /// The job.
    pub job: JobId,
    /// The try.
    pub attempt: Attempt,
    /// 0, 1, 2, …: a doubled or lost message shows.
    pub seq: u32,
    /// Tokens written since the chunk before, hidden ones included.
    pub tokens: TokenCount,
    /// What the boxes need to be opened, with the first of them: in version 1 of 12 bytes, else of 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Blob>,
    /// The box; left out where tokens are told that are in no box yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Blob>,
    /// Whether this is the last box.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
}
