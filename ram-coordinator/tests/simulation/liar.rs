//! Providers that do not keep to the protocol: what they make of each word that an honest agent would say.

use ram_core::chat::PromptText;
use ram_core::id::{Attempt, JobId};
use ram_core::job::{Failure, FinishReason, Outcome, Usage};
use ram_core::units::{Bytes, TokenCount};
use ram_proto::control::{Chunk, ToCoordinator};

use super::dice::Dice;

/// Words that a liar remembers, to say them again.
const PAST_MAX: usize = 64;

/// How a provider lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vice {
    /// Says it took more tokens than it did.
    Greedy,
    /// Says everything twice.
    Double,
    /// Counts each prompt twice, and not alike.
    Fickle,
    /// Swallows every other word about jobs, the last one among them.
    Silent,
    /// Finishes jobs that others run, or nobody.
    Forger,
    /// Says old words again, also of sessions before.
    Parrot,
    /// Puts a thousand tokens into each chunk.
    Padder,
    /// Has slots without number, or none, and is busy with work that nobody gave it.
    Braggart,
    /// Says the end before the rest.
    Hasty,
    /// Registers again in the middle of a session.
    Rude,
}

pub const VICES: [Vice; 10] = [
    Vice::Greedy,
    Vice::Double,
    Vice::Fickle,
    Vice::Silent,
    Vice::Forger,
    Vice::Parrot,
    Vice::Padder,
    Vice::Braggart,
    Vice::Hasty,
    Vice::Rude,
];

/// A liar's memory.
#[derive(Debug, Default)]
pub struct Past {
    words: Vec<ToCoordinator>,
    registration: Option<ToCoordinator>,
}

/// What is said instead of `message`. `jobs` is how many jobs the world has seen.
pub fn lie(
    vice: Vice,
    message: ToCoordinator,
    past: &mut Past,
    jobs: u64,
    dice: &mut Dice,
) -> Vec<ToCoordinator> {
    remember(past, &message);
    let is_about_a_job = matches!(
        message,
        ToCoordinator::Accepted { .. } | ToCoordinator::Chunk(_) | ToCoordinator::Finished { .. }
    );
    match vice {
        Vice::Greedy => vec![greedy(message)],
        Vice::Double => vec![message.clone(), message],
        Vice::Fickle => fickle(message),
        Vice::Silent if is_about_a_job && dice.one_in(2) => Vec::new(),
        Vice::Forger if dice.one_in(3) => vec![forged(jobs, dice), message],
        Vice::Parrot if dice.one_in(3) => {
            let old = past.words[dice.index(past.words.len())].clone();
            vec![message, old]
        }
        Vice::Padder => vec![padded(message)],
        Vice::Braggart => vec![boast(message, dice)],
        Vice::Hasty => hasty(message),
        Vice::Rude if is_about_a_job && dice.one_in(8) => {
            vec![message].into_iter().chain(past.registration.clone()).collect()
        }
        _ => vec![message],
    }
}

fn remember(past: &mut Past, message: &ToCoordinator) {
    if matches!(message, ToCoordinator::Register(_)) {
        past.registration = Some(message.clone());
    }
    if past.words.len() == PAST_MAX {
        past.words.remove(0);
    }
    past.words.push(message.clone());
}

fn greedy(message: ToCoordinator) -> ToCoordinator {
    let many = TokenCount::new(1_000_000);
    match message {
        ToCoordinator::Accepted { job, attempt, .. } => {
            ToCoordinator::Accepted { job, attempt, prompt: many }
        }
        ToCoordinator::Finished { job, attempt, outcome: Outcome::Done { finish, .. } } => {
            let usage = Usage { prompt: many, completion: many, reasoning: many };
            ToCoordinator::Finished { job, attempt, outcome: Outcome::Done { finish, usage } }
        }
        other => other,
    }
}

fn fickle(message: ToCoordinator) -> Vec<ToCoordinator> {
    match message {
        ToCoordinator::Accepted { job, attempt, prompt } => {
            let more = ToCoordinator::Accepted { job, attempt, prompt: prompt + prompt };
            vec![message, more]
        }
        ToCoordinator::Finished { .. } => vec![greedy(message)],
        other => vec![other],
    }
}

fn padded(message: ToCoordinator) -> ToCoordinator {
    match message {
        ToCoordinator::Chunk(chunk) => ToCoordinator::Chunk(Chunk { tokens: TokenCount::new(1000), ..chunk }),
        other => other,
    }
}

fn boast(message: ToCoordinator, dice: &mut Dice) -> ToCoordinator {
    match message {
        ToCoordinator::Heartbeat { mut load, mut offers, .. } => {
            load.slots = dice.pick(&[0, 1, u16::MAX]);
            load.running = dice.pick(&[0, 1, u16::MAX]);
            load.memory_free = Bytes::new(u64::MAX);
            if dice.one_in(3) {
                offers.clear();
            }
            ToCoordinator::Heartbeat { load, memory_cap: Bytes::new(u64::MAX), offers }
        }
        other => other,
    }
}

fn hasty(message: ToCoordinator) -> Vec<ToCoordinator> {
    match message {
        ToCoordinator::Accepted { job, attempt, prompt } => {
            let usage = Usage { prompt, completion: TokenCount::new(5), ..Usage::default() };
            let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
            vec![ToCoordinator::Finished { job, attempt, outcome }, message]
        }
        other => vec![other],
    }
}

/// Words about a job that may be anybody's.
fn forged(jobs: u64, dice: &mut Dice) -> ToCoordinator {
    let job = JobId::from_bits(u128::from(1 + dice.roll(jobs + 1)));
    let attempt = Attempt::new(u32::try_from(1 + dice.roll(3)).expect("a small number")).expect("from 1 on");
    let tokens = TokenCount::new(3);
    match dice.roll(5) {
        0 => ToCoordinator::Accepted { job, attempt, prompt: tokens },
        1 | 2 => ToCoordinator::Chunk(Chunk {
            job,
            attempt,
            seq: u32::try_from(dice.roll(4)).expect("a small number"),
            tokens,
            content: PromptText::from("forged "),
            reasoning: PromptText::default(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
        }),
        3 => {
            ToCoordinator::Finished { job, attempt, outcome: Outcome::Failed { failure: Failure::Internal } }
        }
        _ => {
            let usage = Usage { prompt: tokens, completion: tokens, ..Usage::default() };
            let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
            ToCoordinator::Finished { job, attempt, outcome }
        }
    }
}
