//! The head's part in a pipeline: which tokens go in, and what comes of them.
//!
//! ```text
//! request -- pieces of the prompt, then token by token --> first shard … last shard
//!         <----------------------- the token that was picked -----------------'
//! ```
//!
//! The head alone knows the words. [`Driver`] does no I/O: it takes what happened and says what is to be done. What
//! goes to the first shard has the tokens themselves as payload, 32 bits each, for who holds the first layers holds the
//! embedding; that shard is the head's own and no frame of it leaves the machine.
//!
//! A token of an answer goes before any piece of a prompt, and prompts take turns, piece by piece: so a long one holds
//! up nobody. How many steps are on their way is bounded by the first shard's credit.
//!
//! When a shard is lost and the chain is whole again, in a new epoch, every answer goes on behind its last token: who
//! holds its keys and values keeps them, and the shard that took the lost one's place gets what it needs by the log of
//! the shard before it ([`worker`](crate::worker)). What cannot be kept so begins anew with all its tokens, prompt and
//! answer, and the sampler with the number of the next pick; so does a prompt of which nothing was answered yet. The
//! text goes on as if nothing had been. Of the epoch before nothing is heard any more.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::units::{Timestamp, TokenCount};
use ram_proto::frame::{
    Code, Frame, Head, KvCacheInit, Logprob, Mark, Of, PrefixHash, Refusal, Spent, Step, StepResult, Want,
};
use ram_proto::tensor::{Dtype, Shape};

/// What is to be answered.
#[derive(Clone, PartialEq)]
pub struct Request {
    /// Names it; one that is being answered is not begun again.
    pub session: JobId,
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Tokens of the answer at most.
    pub tokens_max: TokenCount,
    /// How they are picked.
    pub sampling: Sampling,
    /// When nobody waits any more.
    pub deadline: Timestamp,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody asks.
    Submit(Request),
    /// A frame came from the first shard or the last one.
    Arrived(Frame),
    /// An answer is long enough, or nobody waits for it.
    Enough(JobId),
    /// There is no other chain to be had: what is in the middle ends with this.
    Hopeless(Code),
    /// There is another chain; some of its shards hold what the one before held.
    Rebuilt {
        /// Its epoch, later than that of the one before.
        epoch: Epoch,
        /// Steps that its first shard takes at once.
        credits: u32,
    },
    /// Some time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Give the first shard a frame.
    Send(Frame),
    /// More of an answer.
    Token {
        /// Of which session.
        session: JobId,
        /// The token.
        token: u32,
        /// How likely it was, if asked for.
        logprob: Option<Logprob>,
        /// What the shards took for it.
        spent: Spent,
    },
    /// An answer has ended.
    Ended {
        /// Of which session.
        session: JobId,
        /// Why.
        end: End,
    },
}

/// Why an answer has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has all the tokens that it may have.
    Length,
    /// It was said to be enough.
    Enough,
    /// It could not go on.
    Failed(Code),
}

/// The machine.
#[derive(Debug)]
pub struct Driver {
    epoch: Epoch,
    /// Tokens of a piece of a prompt.
    piece: u32,
    credit: u32,
    sessions: BTreeMap<JobId, Session>,
    /// Sessions whose next token of the answer is to be sent, then those with more of a prompt.
    answers: VecDeque<JobId>,
    prompts: VecDeque<JobId>,
}

/// A session in the middle.
struct Session {
    /// Prompt and answer.
    tokens: Vec<u32>,
    prompt: usize,
    tokens_max: usize,
    sampling: Sampling,
    deadline: Timestamp,
    /// How many tokens were sent, and their hash.
    sent: usize,
    prefix: PrefixHash,
    /// Whether it goes on, in this epoch, with what shards held of it before.
    resumed: bool,
    /// Steps of this epoch that went to a session which was begun anew since: their refusals are to be expected.
    void: u32,
}

impl fmt::Debug for Session {
    /// Sizes alone: tokens are words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("tokens", &self.tokens.len())
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Request {
    /// No words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prompt, tokens_max) = (self.prompt.len(), self.tokens_max);
        f.debug_struct("Request")
            .field("session", &self.session)
            .field("prompt", &prompt)
            .field("tokens_max", &tokens_max)
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// A head without sessions over a first shard that takes `credits` steps at once; prompts are sent in pieces of
    /// `piece` tokens.
    #[must_use]
    pub fn new(epoch: Epoch, piece: NonZeroU32, credits: u32) -> Self {
        let (sessions, answers, prompts) = Default::default();
        Self { epoch, piece: piece.get(), credit: credits, sessions, answers, prompts }
    }

    /// How many answers are in the middle.
    #[must_use]
    pub fn running(&self) -> usize {
        self.sessions.len()
    }

    /// Takes what happened; appends what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        match event {
            Event::Submit(request) => self.submit(request, effects),
            Event::Arrived(frame) => match frame.head {
                Head::Credit { steps } => self.credit = self.credit.saturating_add(steps),
                Head::Result(result) => self.result(result, effects),
                Head::Error(refusal) => self.refused(refusal, effects),
                // Whose heartbeats and other words are heard is the shell's business.
                _ => {}
            },
            Event::Enough(session) => self.end(session, End::Enough, effects),
            Event::Rebuilt { epoch, credits } => self.rebuilt(epoch, credits, effects),
            Event::Hopeless(code) => self.end_where(|_| true, End::Failed(code), effects),
            Event::Tick => {
                let is_late = |held: &Session| held.deadline <= now;
                self.end_where(is_late, End::Failed(Code::DeadlineExceeded), effects);
            }
        }
        self.send(now, effects);
    }

    fn submit(&mut self, request: Request, effects: &mut Vec<Effect>) {
        let Request { session, prompt, tokens_max, sampling, deadline } = request;
        if self.sessions.contains_key(&session) {
            return;
        }
        let most = TokenCount::new(prompt.len() as u64).checked_add(tokens_max);
        let is_counted = most.is_some_and(|most| u32::try_from(most.get()).is_ok());
        if !is_counted || prompt.is_empty() || tokens_max == TokenCount::ZERO {
            effects.push(Effect::Ended { session, end: End::Failed(Code::WrongShape) });
            return;
        }
        let (length, prefix) = (prompt.len(), PrefixHash::EMPTY);
        let tokens_max = usize::try_from(tokens_max.get()).unwrap_or(usize::MAX);
        let (tokens, sent, resumed, void) = (prompt, 0, false, 0);
        let prompt = length;
        let held = Session { tokens, prompt, tokens_max, sampling, deadline, sent, prefix, resumed, void };
        effects.push(Effect::Send(held.opening(Of { session, epoch: self.epoch })));
        self.sessions.insert(session, held);
        self.prompts.push_back(session);
    }

    /// Has every session go on in another chain.
    fn rebuilt(&mut self, epoch: Epoch, credits: u32, effects: &mut Vec<Effect>) {
        (self.epoch, self.credit) = (epoch, credits);
        self.answers.clear();
        self.prompts.clear();
        for (&session, held) in &mut self.sessions {
            held.void = 0;
            // The last token of an answer is what the shards have not seen, or have not been seen to answer.
            held.resumed = held.tokens.len() > held.prompt;
            held.go_back(if held.resumed { held.tokens.len() - 1 } else { 0 });
            let queue = if held.resumed { &mut self.answers } else { &mut self.prompts };
            queue.push_back(session);
            effects.push(Effect::Send(held.opening(Of { session, epoch })));
        }
    }

    /// Has a session begin anew in this chain, for not all shards hold what they should.
    fn begin_anew(&mut self, of: Of, effects: &mut Vec<Effect>) {
        let Some(held) = self.sessions.get_mut(&of.session) else { return };
        let is_sent = held.sent == held.tokens.len();
        (held.void, held.resumed) = (u32::from(is_sent), false);
        held.go_back(0);
        effects.push(Effect::Send(Head::Close(of).into()));
        effects.push(Effect::Send(held.opening(of)));
        self.answers.retain(|other| *other != of.session);
        self.prompts.push_back(of.session);
    }

    /// Sends what there is credit for.
    fn send(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        while self.credit > 0 {
            let next = self.answers.pop_front().or_else(|| self.prompts.pop_front());
            let Some(session) = next else { return };
            let Some(held) = self.sessions.get_mut(&session) else { continue };
            let left = held.deadline.since(now);
            if left == Duration::ZERO {
                self.end(session, End::Failed(Code::DeadlineExceeded), effects);
                continue;
            }
            let of = Of { session, epoch: self.epoch };
            effects.push(Effect::Send(held.piece(of, self.piece, left)));
            self.credit -= 1;
            if held.sent < held.tokens.len() {
                self.prompts.push_back(session);
            }
        }
    }

    fn result(&mut self, result: StepResult, effects: &mut Vec<Effect>) {
        let StepResult { of: Of { session, epoch }, position, token, logprob, spent, .. } = result;
        let Some(held) = self.sessions.get_mut(&session).filter(|_| epoch == self.epoch) else { return };
        let Some(token) = token else { return };
        if position as usize != held.tokens.len() || held.sent != held.tokens.len() {
            self.end(session, End::Failed(Code::Protocol), effects);
            return;
        }
        held.tokens.push(token);
        (held.resumed, held.void) = (false, 0);
        let is_last = held.tokens.len() - held.prompt >= held.tokens_max;
        effects.push(Effect::Token { session, token, logprob, spent });
        if is_last {
            self.end(session, End::Length, effects);
        } else {
            self.answers.push_back(session);
        }
    }

    fn refused(&mut self, Refusal { of, code, .. }: Refusal, effects: &mut Vec<Effect>) {
        match of {
            Some(of) if of.epoch == self.epoch => {
                let Some(held) = self.sessions.get_mut(&of.session) else { return };
                let is_lacking = matches!(code, Code::UnknownSession | Code::WrongPrefix | Code::WrongEpoch);
                if is_lacking && held.resumed {
                    self.begin_anew(of, effects);
                } else if is_lacking && held.void > 0 {
                    held.void -= 1;
                } else {
                    self.end(of.session, End::Failed(code), effects);
                }
            }
            Some(_) => {}
            // The chain is broken. Whether there will be another one is for the group to say.
            None => self.credit = 0,
        }
    }

    fn end_where(&mut self, ends: impl Fn(&Session) -> bool, end: End, effects: &mut Vec<Effect>) {
        let ended = self.sessions.iter().filter(|(_, held)| ends(held)).map(|(session, _)| *session);
        for session in ended.collect::<Vec<_>>() {
            self.end(session, end, effects);
        }
    }

    fn end(&mut self, session: JobId, end: End, effects: &mut Vec<Effect>) {
        if self.sessions.remove(&session).is_some() {
            let of = Of { session, epoch: self.epoch };
            self.answers.retain(|other| *other != session);
            self.prompts.retain(|other| *other != session);
            effects.push(Effect::Send(Head::Close(of).into()));
            effects.push(Effect::Ended { session, end });
        }
    }
}

impl Session {
    /// How it begins, from its first token on.
    fn opening(&self, of: Of) -> Frame {
        let Sampling { frequency_penalty, presence_penalty, repetition_penalty, .. } = self.sampling;
        let answer = &self.tokens[self.prompt..];
        // Who samples is told of words if a penalty looks at them, and of no others.
        let seen = if has_effect(repetition_penalty, 1.0) {
            &self.tokens[..]
        } else if has_effect(frequency_penalty, 0.0) || has_effect(presence_penalty, 0.0) {
            answer
        } else {
            &[]
        };
        let head = Head::KvCacheInit(KvCacheInit {
            of,
            positions: TokenCount::new(self.prompt.saturating_add(self.tokens_max) as u64),
            sampling: self.sampling.clone(),
            picks: TokenCount::new(answer.len() as u64),
            resume: self.resumed.then(|| Mark { position: narrow(self.sent), prefix: self.prefix }),
        });
        Frame { head, payload: words(seen) }
    }

    /// Back to where so many tokens were sent.
    fn go_back(&mut self, sent: usize) {
        (self.sent, self.prefix) = (sent, PrefixHash::EMPTY.with(&self.tokens[..sent]));
    }

    /// The next tokens, `most` at once.
    fn piece(&mut self, of: Of, most: u32, left: Duration) -> Frame {
        let end = self.tokens.len().min(self.sent + most as usize);
        let tokens = &self.tokens[self.sent..end];
        let after = self.prefix.with(tokens);
        let step = Step {
            of,
            position: narrow(self.sent),
            shape: Shape { rows: narrow(tokens.len()), cols: 1 },
            dtype: Dtype::F32,
            prefix: self.prefix,
            after,
            want: if end == self.tokens.len() { Want::Token } else { Want::Nothing },
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            spent: Spent::default(),
        };
        let frame = Frame { head: Head::ForwardPass(step), payload: words(tokens) };
        (self.sent, self.prefix) = (end, after);
        frame
    }
}

/// Whether a factor or summand differs from the one that changes nothing.
fn has_effect(setting: f32, neutral: f32) -> bool {
    setting.to_bits() != neutral.to_bits()
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).expect("a session has fewer tokens than 32 bits count")
}

/// Tokens as bytes.
fn words(tokens: &[u32]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(4 * tokens.len());
    tokens.iter().for_each(|token| bytes.put_u32_le(*token));
    bytes.freeze()
}
