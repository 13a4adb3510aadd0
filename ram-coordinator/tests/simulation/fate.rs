//! What is promised to the user of one job and to those who serve it, checked at each step.

use ram_chain::pricing;
use ram_coordinator::state::{ConnId, JobError, Receipt, Reply, SettleOrder};
use ram_core::id::{Attempt, JobId, ProviderId};
use ram_core::units::{TokenCount, XRam};
use ram_proto::control::Chunk;

/// One job, as somebody sees it who sees everything.
#[derive(Debug)]
pub struct Fate {
    pub job: JobId,
    /// The coordinator's life in which it was submitted.
    pub life: u32,
    price_per_1k: Option<XRam>,
    max_tokens: TokenCount,
    /// What the coordinator wanted set aside, and whether it was.
    pub ordered: Option<XRam>,
    pub held: bool,
    /// Settled or voided, by order of the coordinator.
    settled: Option<SettleOrder>,
    voided: bool,
    tries: Vec<Try>,
    /// Visible words that the user has, all of one provider.
    words: u32,
    pub end: Option<End>,
}

/// One attempt.
#[derive(Debug)]
struct Try {
    attempt: Attempt,
    conn: ConnId,
    provider: ProviderId,
    prompt: Option<TokenCount>,
    delivered: TokenCount,
    /// Whether the user has anything of them: tokens can be claimed that say nothing.
    told: bool,
    chunks: u32,
}

/// How it was for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Done(Receipt),
    Failed(JobError, Option<Receipt>),
    /// The user left.
    Left,
    /// The coordinator died meanwhile.
    Broken,
}

impl Fate {
    pub fn new(job: JobId, life: u32, price_per_1k: Option<XRam>, max_tokens: TokenCount) -> Self {
        Self {
            job,
            life,
            price_per_1k,
            max_tokens,
            ordered: None,
            held: false,
            settled: None,
            voided: false,
            tries: Vec::new(),
            words: 0,
            end: None,
        }
    }

    /// Whether the money is settled as far as the coordinator knows: each hold once, and only what is held.
    pub fn is_resolved(&self) -> bool {
        self.settled.is_some() || self.voided
    }

    /// Which providers had a try, in order.
    pub fn tried(&self) -> impl Iterator<Item = ProviderId> {
        self.tries.iter().map(|one| one.provider)
    }

    /// The coordinator wants money set aside.
    pub fn hold(&mut self, amount: XRam) {
        assert_eq!(self.ordered, None, "{self}: held twice");
        self.ordered = Some(amount);
    }

    /// A provider is told to run it.
    pub fn run(&mut self, attempt: Attempt, conn: ConnId, provider: ProviderId) {
        assert!(self.held, "{self}: runs before the money is set aside");
        assert!(!self.is_resolved(), "{self}: runs after it was paid");
        assert_ne!(self.end, Some(End::Left), "{self}: runs for nobody");
        let last = self.tries.last().map(|last| last.attempt.get());
        assert_eq!(attempt.get(), last.map_or(1, |last| last + 1), "{self}: tries are counted one by one");
        assert!(self.tried().all(|tried| tried != provider), "{self}: {provider} has failed it already");
        let told = self.tries.iter().any(|one| one.told);
        assert!(!told, "{self}: begins anew after the user has words");
        let delivered = TokenCount::ZERO;
        let fresh = Try { attempt, conn, provider, prompt: None, delivered, told: false, chunks: 0 };
        self.tries.push(fresh);
    }

    /// Whether words about this attempt from this connection are listened to.
    pub fn is_current(&self, attempt: Attempt, conn: ConnId) -> bool {
        let is_last = |last: &Try| last.attempt == attempt && last.conn == conn;
        !self.is_resolved() && self.tries.last().is_some_and(is_last)
    }

    /// The coordinator was told how long the prompt is, and believed it.
    pub fn counted(&mut self, prompt: TokenCount) {
        if let Some(last) = self.tries.last_mut() {
            last.prompt.get_or_insert(prompt);
        }
    }

    /// A chunk was passed on to the user.
    pub fn delivered(&mut self, chunk: &Chunk) {
        let job = self.job.bits();
        if let Some(last) = self.tries.last_mut() {
            assert_eq!(chunk.seq, last.chunks, "job {job}: a chunk out of turn reached the user");
            last.chunks += 1;
            last.delivered += chunk.tokens;
            let texts = [&chunk.content, &chunk.reasoning];
            last.told |= texts.iter().any(|text| !text.as_str().is_empty())
                || !chunk.tool_calls.is_empty()
                || !chunk.logprobs.is_empty();
        }
    }

    /// The coordinator orders a payment, or notes what would be paid if it died now.
    pub fn check_order(&self, order: &SettleOrder) {
        let last = self.tries.last().unwrap_or_else(|| panic!("{self}: paid, and nobody ran it"));
        assert_eq!((order.attempt, order.provider), (last.attempt, last.provider), "{self}: a ghost is paid");
        let usage = order.usage;
        assert!(usage.completion <= last.delivered, "{self}: {usage:?} paid, {} delivered", last.delivered);
        assert!(usage.completion <= self.max_tokens, "{self}: more paid than was asked for");
        assert!(Some(usage.prompt) <= last.prompt, "{self}: a prompt of {:?} paid as {usage:?}", last.prompt);
        let price = self.price_per_1k.expect("a model that runs has a price");
        let charge = pricing::charge(price, usage.prompt + usage.completion);
        assert_eq!(Some(order.charge), charge, "{self}: not the price that was fixed");
        assert!(self.held && Some(order.charge) <= self.ordered, "{self}: above the hold");
        assert!(!self.is_resolved(), "{self}: resolved already");
    }

    pub fn settle(&mut self, order: &SettleOrder) {
        self.check_order(order);
        self.settled = Some(order.clone());
    }

    pub fn void(&mut self) {
        assert!(self.held, "{self}: released and never held");
        assert!(!self.is_resolved(), "{self}: resolved already");
        self.voided = true;
    }

    /// The user hears something. The words of honest providers can be checked.
    pub fn hear(&mut self, reply: &Reply, is_honest: impl Fn(ProviderId) -> bool) {
        if self.end == Some(End::Left) {
            return; // nobody is there to hear it
        }
        assert_eq!(self.end, None, "{self}: a word after the end");
        match reply {
            Reply::Started { .. } => {}
            Reply::Sealed { .. } => panic!("{self}: a box, and words were asked for"),
            Reply::Delta { content, .. } => {
                let provider = self.tries.last().map(|last| last.provider);
                if provider.is_some_and(is_honest) {
                    self.read(content.as_str());
                }
            }
            Reply::Done { usage, receipt, .. } => {
                let settled = self.settled.as_ref().unwrap_or_else(|| panic!("{self}: done and not paid"));
                assert_eq!((settled.charge, settled.usage), (receipt.charge, *usage), "{self}");
                self.end = Some(End::Done(*receipt));
            }
            Reply::Failed { error, receipt } => {
                assert!(!self.held || self.is_resolved(), "{self}: over, and its hold is open");
                let charged = self.settled.as_ref().map(|order| order.charge);
                assert_eq!(charged, receipt.map(|receipt| receipt.charge), "{self}: not what was taken");
                self.end = Some(End::Failed(error.clone(), *receipt));
            }
        }
    }

    /// Words that the user has.
    pub fn words(&self) -> u32 {
        self.words
    }

    /// Honest providers number their words, so that one that is lost, doubled or out of turn shows.
    fn read(&mut self, text: &str) {
        for word in text.split_whitespace() {
            assert_eq!(word.parse(), Ok(self.words), "{self}: the answer has a gap");
            self.words += 1;
        }
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "job {}", self.job.bits())
    }
}
