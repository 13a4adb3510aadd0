//! A run of layers, as the pipeline sees it.

use std::fmt;

use ram_core::id::JobId;
use ram_core::job::Sampling;
use ram_core::units::TokenCount;
use ram_proto::frame::{Code, Logprob, Want};

/// Some layers of a model, with keys and values of many sessions. Who holds the first layers has the embedding too, who
/// holds the last ones the head and the sampler.
///
/// What a session gets depends on its own steps alone, to the bit if those have the same shapes.
pub trait Stage {
    /// Begins a session; one of the same id is void.
    ///
    /// # Errors
    /// [`Code`], when there is no memory or a setting is not understood.
    fn open(&mut self, session: JobId, opening: &Opening) -> Result<(), Code>;

    /// Computes steps of different sessions in one pass; an answer for each. A step at an earlier position than was
    /// computed takes back what lies there and behind, picks included; one of a session that is not here (it was ended
    /// while its step waited) is answered with nothing.
    ///
    /// # Errors
    /// [`Code`], when the pass failed: then all its sessions are as they were before.
    fn forward(&mut self, steps: &[StageStep]) -> Result<Vec<StageOutput>, Code>;

    /// Forgets what a session has from `position` on, the picks behind it included.
    fn trim(&mut self, session: JobId, position: u32);

    /// Ends a session.
    fn close(&mut self, session: JobId);
}

/// How a session begins.
#[derive(Clone, PartialEq)]
pub struct Opening {
    /// Positions that it will have at most.
    pub positions: TokenCount,
    /// How its tokens are picked, by who holds the head.
    pub sampling: Sampling,
    /// Tokens that the sampler counts as seen, if its settings look at any: the last `picks` are of the answer.
    pub seen: Vec<u32>,
    /// How many tokens were picked before: the number of the first pick here.
    pub picks: TokenCount,
}

/// Some tokens of a session.
#[derive(Clone, PartialEq)]
pub struct StageStep {
    /// Which.
    pub session: JobId,
    /// The position of the first token.
    pub position: u32,
    /// What comes in.
    pub input: Input,
    /// What is to come out of the last stage.
    pub want: Want,
}

/// What comes into a stage.
#[derive(Clone, PartialEq)]
pub enum Input {
    /// To the first.
    Tokens(Vec<u32>),
    /// To any other: (T, E).
    Hidden(Vec<f32>),
}

/// What comes out of a stage.
#[derive(Clone, PartialEq)]
pub enum StageOutput {
    /// Of any but the last: (T, E).
    Hidden(Vec<f32>),
    /// A token was picked.
    Token {
        /// Which.
        token: u32,
        /// How likely it was, if the sampling asks for that.
        logprob: Option<Logprob>,
    },
    /// Logits after each token: (T, V).
    Logits(Vec<f32>),
    /// Nothing was wanted.
    Nothing,
}

impl fmt::Debug for Opening {
    /// Sizes alone: tokens are words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening")
            .field("positions", &self.positions)
            .field("seen", &self.seen.len())
            .field("picks", &self.picks)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for StageStep {
    /// No numbers: what is computed from words tells of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageStep")
            .field("session", &self.session)
            .field("position", &self.position)
            .field("input", &self.input)
            .field("want", &self.want)
            .finish()
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens(tokens) => write!(f, "Tokens({})", tokens.len()),
            Self::Hidden(numbers) => write!(f, "Hidden({} numbers)", numbers.len()),
        }
    }
}

impl fmt::Debug for StageOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hidden(numbers) => write!(f, "Hidden({} numbers)", numbers.len()),
            Self::Token { .. } => write!(f, "Token"),
            Self::Logits(numbers) => write!(f, "Logits({} numbers)", numbers.len()),
            Self::Nothing => write!(f, "Nothing"),
        }
    }
}
