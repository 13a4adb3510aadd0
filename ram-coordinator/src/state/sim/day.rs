//! One thing at a time: what a coordinator does when a single thing goes right, or wrong.

use ram_core::job::TokenLogprob;
use ram_core::route::Refusal;
use ram_core::validate::Refused;

use super::*;
use crate::state::standing::Standings;

/// A quiet night with one node: what the user sees, in order.
#[test]
fn a_job_is_held_run_paid_and_answered() {
    let mut night = Night::new(1, 1);
    let (conn, job) = (ConnId(1), JobId::from_bits(9));
    let mut effects = Vec::new();
    let mut handle = |night: &mut Night, event| {
        effects.clear();
        night.coordinator.handle(event, night.now, &mut effects);
        std::mem::take(&mut effects)
    };
    handle(&mut night, Event::SocketOpened { conn, nonce: Nonce::from_bytes([3; 32]) });
    let register = night.register(0, Nonce::from_bytes([3; 32]));
    let registered = handle(&mut night, Event::FromProvider { conn, message: Box::new(register) });
    assert!(matches!(&registered[..], [Effect::Send { message, .. }]
        if matches!(**message, ToProvider::Registered { .. })));

    let submission = submission(job, Payer::Key("key".to_owned()));
    let held = handle(&mut night, Event::Submit(Box::new(submission)));
    assert!(matches!(&held[..], [Effect::Hold(order)] if order.job == job));
    let sent = handle(&mut night, Event::Held { job, result: Ok(()) });
    assert!(
        matches!(&sent[..], [Effect::Send { message, .. }] if matches!(**message, ToProvider::Run { .. }))
    );

    let attempt = Attempt::FIRST;
    let say = |message| Event::FromProvider { conn, message: Box::new(message) };
    let prompt = TokenCount::new(5);
    let started = handle(&mut night, say(ToCoordinator::Accepted { job, attempt, prompt }));
    assert!(matches!(&started[..], [Effect::Reply { reply: Reply::Started { .. }, .. }]));
    let chunk = Chunk {
        job,
        attempt,
        seq: 0,
        tokens: TokenCount::new(2),
        content: PromptText::from("Hi!"),
        reasoning: PromptText::default(),
        tool_calls: Vec::new(),
        logprobs: Vec::new(),
    };
    let delta = handle(&mut night, say(ToCoordinator::Chunk(chunk.clone())));
    assert!(matches!(&delta[..], [Effect::Reply { reply: Reply::Delta { .. }, .. }]));
    assert_eq!(handle(&mut night, say(ToCoordinator::Chunk(chunk))), [], "what comes twice counts once");
    let usage = Usage { prompt, completion: TokenCount::new(2), reasoning: TokenCount::ZERO };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let paid = handle(&mut night, say(ToCoordinator::Finished { job, attempt, outcome }));
    assert!(matches!(&paid[..], [Effect::Settle(order)] if order.usage == usage));
    let done = handle(&mut night, Event::Settled { job, remaining: Some(XRam::from_xram(1)) });
    assert!(matches!(&done[..], [Effect::Reply { reply: Reply::Done { .. }, .. }]));
    assert_eq!(night.coordinator.open_jobs(), 0);
}

/// An answer that holds 64 tokens.
const TOLD_TOO_FAST: &str = "it is said faster than anybody could read the weights of it even once";

/// A network of honest nodes, driven step by step.
pub(super) struct Day {
    pub(super) night: Night,
}

impl Day {
    /// `nodes` providers, on sockets 0, 1, …, each with two slots.
    pub(super) fn new(nodes: usize) -> Self {
        let mut day = Self { night: Night::new(1, nodes) };
        for n in 0..nodes {
            let (conn, nonce) = (ConnId(n as u64), Nonce::from_bytes([u8::try_from(n).unwrap(); 32]));
            day.happen(Event::SocketOpened { conn, nonce });
            let register = day.night.register(n, nonce);
            day.say(conn, register);
        }
        day
    }

    pub(super) fn happen(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.night.coordinator.handle(event, self.night.now, &mut effects);
        effects
    }

    pub(super) fn say(&mut self, conn: ConnId, message: ToCoordinator) -> Vec<Effect> {
        self.happen(Event::FromProvider { conn, message: Box::new(message) })
    }

    /// Submits a job; answers the socket that it goes to, if it goes anywhere.
    pub(super) fn submit(&mut self, job: JobId) -> Option<ConnId> {
        self.submit_for(submission(job, Payer::Key("key".to_owned())))
    }

    fn submit_for(&mut self, submission: Submission) -> Option<ConnId> {
        let job = submission.job;
        self.happen(Event::Submit(Box::new(submission)));
        runs_on(&self.happen(Event::Held { job, result: Ok(()) }))
    }

    /// Why a job is not taken in.
    pub(super) fn turned_away(&mut self, submission: Submission) -> Option<JobError> {
        self.happen(Event::Submit(Box::new(submission))).iter().find_map(|effect| match effect {
            Effect::Reply { reply: Reply::Failed { error, .. }, .. } => Some(error.clone()),
            _ => None,
        })
    }

    /// A provider gives a whole answer in one chunk, a second after it was asked.
    fn answer(&mut self, conn: ConnId, job: JobId, attempt: Attempt, tokens: u64, text: &str) -> Vec<Effect> {
        self.night.now = self.night.now.after(Duration::from_secs(1));
        self.say(conn, ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
        self.say(conn, FakeRun::default().chunk(job, attempt, tokens, text));
        self.say(conn, ToCoordinator::Finished { job, attempt, outcome: done(tokens) })
    }

    /// A heavy job is answered faster than anybody can: on which socket, and what that leads to.
    fn hurry(&mut self, job: JobId, text: &str) -> (ConnId, Vec<Effect>) {
        let (model, attempt) = (HEAVY_MODEL.parse().unwrap(), Attempt::FIRST);
        let payer = Payer::Key("key".to_owned());
        let conn = self.submit_for(Submission { model, ..submission(job, payer) }).unwrap();
        self.say(conn, ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
        self.say(conn, FakeRun::default().chunk(job, attempt, 64, text));
        (conn, self.say(conn, ToCoordinator::Finished { job, attempt, outcome: done(64) }))
    }

    /// A node connects once more, on a socket of this number; answers what that leads to.
    fn reconnect(&mut self, n: usize, conn: ConnId) -> Vec<Effect> {
        let nonce = Nonce::from_bytes([u8::try_from(conn.0).unwrap(); 32]);
        self.happen(Event::SocketOpened { conn, nonce });
        let register = self.night.register(n, nonce);
        self.say(conn, register)
    }

    /// The socket of a node, if it is here.
    pub(super) fn conn_of(&self, n: usize) -> Option<ConnId> {
        self.night.coordinator.registry.node(self.id(n)).map(|node| node.conn)
    }

    pub(super) fn id(&self, n: usize) -> ProviderId {
        self.night.nodes[n].id()
    }

    /// Thousandths.
    pub(super) fn reputation(&self, n: usize) -> u32 {
        self.night.coordinator.standings.of(self.id(n), self.night.now).get()
    }

    pub(super) fn later(&mut self, time: Duration) -> Vec<Effect> {
        self.night.now = self.night.now.after(time);
        self.happen(Event::Tick)
    }
}

/// The socket to which a `run` is sent.
fn runs_on(effects: &[Effect]) -> Option<ConnId> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { conn, message } if matches!(**message, ToProvider::Run { .. }) => Some(*conn),
        _ => None,
    })
}

fn failed(job: JobId, failure: Failure) -> ToCoordinator {
    ToCoordinator::Finished { job, attempt: Attempt::FIRST, outcome: Outcome::Failed { failure } }
}

#[test]
fn a_provider_that_hangs_and_dies_takes_nothing_from_the_one_that_took_over() {
    let (mut day, job) = (Day::new(2), JobId::from_bits(1));
    let hangs = day.submit(job).unwrap();
    let helps = runs_on(&day.later(Duration::from_secs(4))).unwrap();
    assert_ne!(hangs, helps);
    let second = Attempt::FIRST.next();
    day.say(helps, ToCoordinator::Accepted { job, attempt: second, prompt: TokenCount::new(5) });
    assert_eq!(day.happen(Event::SocketClosed { conn: hangs }), []);
    let usage = Usage { prompt: TokenCount::new(5), ..Usage::default() };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let paid = day.say(helps, ToCoordinator::Finished { job, attempt: second, outcome });
    assert!(matches!(&paid[..], [Effect::Settle(order)] if order.attempt == second));
}

#[test]
fn a_job_that_nobody_else_can_try_ends_at_once_and_blocks_nobody() {
    let mut day = Day::new(1);
    let (first, second, third) = (JobId::from_bits(1), JobId::from_bits(2), JobId::from_bits(3));
    let conn = day.submit(first).unwrap();
    day.submit(second).unwrap();
    assert_eq!(day.submit(third), None, "both slots are taken");
    let effects = day.say(conn, failed(first, Failure::Overloaded));
    let error = JobError::Provider { failure: Failure::Overloaded };
    assert!(effects.contains(&Effect::Reply { job: first, reply: Reply::Failed { error, receipt: None } }));
    assert_eq!(runs_on(&effects), Some(conn), "the third job has the slot");
}

#[test]
fn an_answer_to_a_prompt_that_nobody_counted_is_not_paid() {
    let (mut day, job) = (Day::new(1), JobId::from_bits(1));
    let conn = day.submit(job).unwrap();
    let usage = Usage { prompt: TokenCount::new(1_000_000), ..Usage::default() };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let effects = day.say(conn, ToCoordinator::Finished { job, attempt: Attempt::FIRST, outcome });
    assert!(effects.contains(&Effect::Void { job }), "{effects:?}");
}

#[test]
fn a_prompt_is_counted_once_and_paid_as_it_was_told() {
    let (mut day, job) = (Day::new(1), JobId::from_bits(1));
    let conn = day.submit(job).unwrap();
    let attempt = Attempt::FIRST;
    let accepted = |prompt| ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(prompt) };
    day.say(conn, accepted(3));
    assert_eq!(day.say(conn, accepted(16)), []);
    let chunk = day.answer(conn, job, attempt, 1, "Hi");
    assert!(
        matches!(&chunk[..], [Effect::Settle(order), ..] if order.usage.prompt == TokenCount::new(3)),
        "{chunk:?}"
    );
}

#[test]
fn a_provider_that_only_fails_gets_no_more_jobs() {
    let mut day = Day::new(1);
    for number in 1..=3 {
        let job = JobId::from_bits(number);
        let conn = day.submit(job).unwrap();
        day.say(conn, failed(job, Failure::Internal));
    }
    assert_eq!(day.submit(JobId::from_bits(4)), None);
}

#[test]
fn a_machine_that_slept_loses_nobody() {
    let mut day = Day::new(1);
    day.later(Duration::from_secs(1));
    assert_eq!(day.later(Duration::from_secs(3600)), []);
    assert_eq!(day.later(Duration::from_secs(1)), []);
}

#[test]
fn who_leaves_before_the_money_is_held_gets_it_back_and_no_provider_hears_of_it() {
    let mut night = Night::new(1, 1);
    let (conn, job, mut effects) = (ConnId(1), JobId::from_bits(1), Vec::new());
    let nonce = Nonce::from_bytes([3; 32]);
    let register = Box::new(night.register(0, nonce));
    for event in [
        Event::SocketOpened { conn, nonce },
        Event::FromProvider { conn, message: register },
        Event::Submit(Box::new(submission(job, Payer::Key("key".to_owned())))),
        Event::Abandon { job },
    ] {
        night.coordinator.handle(event, night.now, &mut effects);
    }
    effects.clear();
    night.coordinator.handle(Event::Held { job, result: Ok(()) }, night.now, &mut effects);
    assert_eq!(effects, [Effect::Void { job }]);
}

/// Money follows identity: the same key on a second socket ends the first session.
#[test]
fn a_ghost_is_fenced_off() {
    let mut night = Night::new(1, 1);
    let open = |night: &mut Night, conn, nonce| {
        let mut effects = Vec::new();
        night.coordinator.handle(Event::SocketOpened { conn, nonce }, night.now, &mut effects);
        let message = Box::new(night.register(0, nonce));
        night.coordinator.handle(Event::FromProvider { conn, message }, night.now, &mut effects);
        effects
    };
    open(&mut night, ConnId(1), Nonce::from_bytes([1; 32]));
    let effects = open(&mut night, ConnId(2), Nonce::from_bytes([2; 32]));
    assert!(effects.contains(&Effect::Close { conn: ConnId(1) }));
    let mut effects = Vec::new();
    let draining = Event::FromProvider { conn: ConnId(1), message: Box::new(ToCoordinator::Draining) };
    night.coordinator.handle(draining, night.now, &mut effects);
    let id: ProviderId = NodeKey::from_bytes(night.nodes[0].identity.node_public()).provider_id();
    assert!(!night.coordinator.registry.node(id).unwrap().draining, "a ghost was heard");
}

/// What nobody pays for, and what is paid.
fn verdicts(effects: &[Effect]) -> (Option<Verdict>, Option<&SettleOrder>) {
    let refused = effects.iter().find_map(|effect| match effect {
        Effect::Refuse(order) => Some(order.verdict),
        _ => None,
    });
    let settled = effects.iter().find_map(|effect| match effect {
        Effect::Settle(order) => Some(order),
        _ => None,
    });
    (refused, settled)
}

#[test]
fn who_claims_tokens_too_fast_and_says_nothing_is_not_paid_and_somebody_else_answers() {
    let (mut day, job) = (Day::new(2), JobId::from_bits(1));
    let (liar, effects) = day.hurry(job, "");
    assert!(matches!(verdicts(&effects), (Some(Verdict::Refused(Refused::TooFast { .. })), None)));
    let helps = runs_on(&effects).unwrap();
    assert_ne!(liar, helps);
    let effects = day.answer(helps, job, Attempt::FIRST.next(), 2, "Paris");
    let (refused, paid) = verdicts(&effects);
    assert_eq!(
        (refused, paid.unwrap().verdict, paid.unwrap().attempt),
        (None, Verdict::Good, Attempt::FIRST.next())
    );
    let by_conn = [day.reputation(0), day.reputation(1)];
    assert_eq!(
        (by_conn[usize::try_from(liar.0).unwrap()], by_conn[usize::try_from(helps.0).unwrap()]),
        (200, 502)
    );
}

#[test]
fn an_inflated_answer_is_paid_for_as_much_as_its_text_can_hold_and_locks_nobody_out() {
    let mut day = Day::new(1);
    for number in 1..=20 {
        let job = JobId::from_bits(number);
        let conn = day.submit(job).unwrap();
        let effects = day.answer(conn, job, Attempt::FIRST, 64, "no");
        let (refused, paid) = verdicts(&effects);
        let (claimed, most) = (TokenCount::new(64), TokenCount::new(2 + 16));
        let inflated = Verdict::Unrewarded(Unrewarded::Inflated { claimed, most });
        assert_eq!((refused, paid.unwrap().verdict), (None, inflated));
        assert_eq!(paid.unwrap().usage.completion, most);
        day.happen(Event::Settled { job, remaining: None });
    }
    assert_eq!(day.reputation(0), 500, "a user may have asked for just that");
}

#[test]
fn an_answer_without_a_token_costs_nothing_also_where_it_could_stop_at_once() {
    let (mut day, job) = (Day::new(1), JobId::from_bits(1));
    let mut wish = submission(job, Payer::Key("key".to_owned()));
    plain(&mut wish).params.stop = vec!["END".into()];
    let conn = day.submit_for(wish).unwrap();
    let effects = day.answer(conn, job, Attempt::FIRST, 0, "");
    let (_, paid) = verdicts(&effects);
    assert_eq!(paid.unwrap().charge, XRam::ZERO);
}

#[test]
fn an_answer_faster_than_memory_is_not_paid_also_when_it_breaks_off() {
    let mut day = Day::new(1);
    for (number, outcome) in [(1, done(64)), (2, Outcome::Failed { failure: Failure::Internal })] {
        let (job, attempt) = (JobId::from_bits(number), Attempt::FIRST);
        let heavy = HEAVY_MODEL.parse().unwrap();
        let payer = Payer::Key("key".to_owned());
        day.reconnect(0, ConnId(7 + u64::try_from(number).unwrap()));
        // A name good enough for one lie.
        let trusted = Reputation::from_parts(900_000, day.night.now);
        let provider = day.id(0);
        day.night.coordinator.standings = Standings::default();
        day.happen(Event::Remembered(vec![Standing { provider, reputation: trusted }]));
        let conn = day.submit_for(Submission { model: heavy, ..submission(job, payer) }).unwrap();
        day.say(conn, ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
        day.say(conn, FakeRun::default().chunk(job, attempt, 64, TOLD_TOO_FAST));
        let effects = day.say(conn, ToCoordinator::Finished { job, attempt, outcome });
        assert!(matches!(verdicts(&effects), (Some(Verdict::Refused(Refused::TooFast { .. })), None)));
    }
}

/// A tool call is told whole, and may take minutes to write.
#[test]
fn tokens_without_a_word_keep_an_attempt_alive_and_do_not_bind_it() {
    let (mut day, job, attempt) = (Day::new(2), JobId::from_bits(1), Attempt::FIRST);
    let conn = day.submit(job).unwrap();
    day.say(conn, ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
    let (mut run, other) = (FakeRun::default(), ConnId(1 - conn.0));
    for _ in 0..20 {
        day.night.now = day.night.now.after(Duration::from_secs(2));
        let (load, memory_cap) = (load(), Bytes::from_gib(4));
        day.say(other, ToCoordinator::Heartbeat { load, memory_cap, offers: offers() });
        day.say(conn, run.chunk(job, attempt, 1, ""));
        let ticked = day.happen(Event::Tick);
        assert!(!ticked.iter().any(|effect| matches!(effect, Effect::Send { .. })), "{ticked:?}");
    }
    assert_eq!(runs_on(&day.happen(Event::SocketClosed { conn })), Some(other), "nothing was said yet");
}

#[test]
fn a_token_with_a_log_probability_is_no_longer_than_tokens_are() {
    let logprob = |bytes: usize, top| TokenLogprob {
        token: "x".repeat(bytes).into(),
        bytes: vec![b'x'; bytes],
        logprob: -1.0,
        top,
    };
    let check = |told: TokenLogprob, is_honest: bool| {
        let (mut day, job, attempt) = (Day::new(1), JobId::from_bits(1), Attempt::FIRST);
        let mut wish = submission(job, Payer::Key("key".to_owned()));
        plain(&mut wish).params.sampling.top_logprobs = Some(1);
        let conn = day.submit_for(wish).unwrap();
        day.say(conn, ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
        let ToCoordinator::Chunk(chunk) = FakeRun::default().chunk(job, attempt, 1, "x") else {
            panic!("a chunk")
        };
        let effects = day.say(conn, ToCoordinator::Chunk(Chunk { logprobs: vec![told], ..chunk }));
        let heard = |effect: &Effect| matches!(effect, Effect::Reply { reply: Reply::Delta { .. }, .. });
        assert_eq!(effects.iter().any(heard), is_honest, "{effects:?}");
    };
    check(logprob(256, vec![logprob(256, Vec::new())]), true);
    check(logprob(257, Vec::new()), false);
    check(logprob(1, vec![logprob(257, Vec::new())]), false);
}

#[test]
fn junk_that_was_asked_for_is_paid_and_marked() {
    let (mut day, job) = (Day::new(1), JobId::from_bits(1));
    let conn = day.submit(job).unwrap();
    let effects = day.answer(conn, job, Attempt::FIRST, 60, &"the ".repeat(60));
    let (refused, paid) = verdicts(&effects);
    assert_eq!((refused, paid.unwrap().verdict), (None, Verdict::Unrewarded(Unrewarded::LowEntropy)));
    assert!(paid.unwrap().charge > XRam::ZERO);
    assert_eq!(day.reputation(0), 500, "a stranger has nothing to lose by it");
}

#[test]
fn the_same_long_answer_to_two_prompts_is_paid_and_marked() {
    let mut day = Day::new(1);
    let text = "Everybody hears this from me, whatever it is that they would like to know. ".repeat(8);
    let mut ask = |number| {
        let job = JobId::from_bits(number);
        let conn = day.submit(job).unwrap();
        let effects = day.answer(conn, job, Attempt::FIRST, 64, &text);
        let (_, paid) = verdicts(&effects);
        (paid.unwrap().verdict, paid.unwrap().charge > XRam::ZERO)
    };
    assert_eq!(ask(1), (Verdict::Good, true));
    assert_eq!(ask(2), (Verdict::Unrewarded(Unrewarded::Duplicate), true));
}

#[test]
fn an_answer_without_a_word_is_whole_and_costs_nothing() {
    let (mut day, job) = (Day::new(1), JobId::from_bits(1));
    let conn = day.submit(job).unwrap();
    let effects = day.answer(conn, job, Attempt::FIRST, 0, "");
    let (_, paid) = verdicts(&effects);
    let paid = paid.unwrap();
    assert_eq!((paid.verdict, paid.charge), (Verdict::Unrewarded(Unrewarded::Empty), XRam::ZERO));
    let done = day.happen(Event::Settled { job, remaining: None });
    assert!(matches!(&done[..], [Effect::Reply { reply: Reply::Done { .. }, .. }]));
}

#[test]
fn a_cut_answer_is_paid_for_as_much_as_its_text_can_hold() {
    let (mut day, job, attempt) = (Day::new(1), JobId::from_bits(1), Attempt::FIRST);
    let conn = day.submit(job).unwrap();
    day.say(conn, ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
    day.say(conn, FakeRun::default().chunk(job, attempt, 60, "no"));
    let effects = day.happen(Event::SocketClosed { conn });
    let (refused, paid) = verdicts(&effects);
    assert_eq!((refused, paid.unwrap().usage.completion), (None, TokenCount::new(2 + 16)));
}

/// Night 664: what an honest node says may be lost on the way, and its claim arrives alone.
#[test]
fn an_honest_answer_of_which_every_word_was_lost_is_no_lie() {
    let (mut day, job, attempt) = (Day::new(1), JobId::from_bits(1), Attempt::FIRST);
    let conn = day.submit(job).unwrap();
    day.say(conn, ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
    let effects = day.say(conn, ToCoordinator::Finished { job, attempt, outcome: done(64) });
    let (refused, paid) = verdicts(&effects);
    assert_eq!((refused, paid.unwrap().charge), (None, XRam::ZERO));
}

#[test]
fn a_node_that_is_silent_for_25_seconds_is_gone_and_its_job_goes_on_elsewhere() {
    let (mut day, job) = (Day::new(2), JobId::from_bits(1));
    day.night.coordinator.config.limits.first_token = Duration::from_secs(600);
    day.later(Duration::from_secs(1));
    let silent = day.submit(job).unwrap();
    let other = ConnId(1 - silent.0);
    let n = usize::try_from(silent.0).unwrap();
    for _ in 0..6 {
        let (load, memory_cap) = (load(), Bytes::from_gib(4));
        day.say(other, ToCoordinator::Heartbeat { load, memory_cap, offers: offers() });
        assert_eq!(day.later(Duration::from_secs(4)), [], "nobody has been silent for so long yet");
    }
    assert_eq!(day.later(Duration::ZERO), []);
    day.say(
        other,
        ToCoordinator::Heartbeat { load: load(), memory_cap: Bytes::from_gib(4), offers: offers() },
    );
    let effects = day.later(Duration::from_secs(2));
    assert!(effects.contains(&Effect::Close { conn: silent }), "{effects:?}");
    assert_eq!(runs_on(&effects), Some(other));
    assert_eq!(day.night.coordinator.provider(day.id(n)), None);
    assert_eq!(day.reputation(n), 475, "who vanishes with a job has failed it");
}

#[test]
fn a_ghosts_late_result_is_neither_paid_nor_counted() {
    let (mut day, job, attempt) = (Day::new(1), JobId::from_bits(1), Attempt::FIRST);
    let ghost = day.submit(job).unwrap();
    day.say(ghost, ToCoordinator::Accepted { job, attempt, prompt: TokenCount::new(12) });
    let effects = day.reconnect(0, ConnId(5));
    assert!(effects.contains(&Effect::Close { conn: ghost }));
    let before = day.reputation(0);
    for message in [
        FakeRun::default().chunk(job, attempt, 2, "Paris"),
        ToCoordinator::Finished { job, attempt, outcome: done(2) },
        failed(job, Failure::Internal),
    ] {
        let effects = day.say(ghost, message);
        let (refused, paid) = verdicts(&effects);
        assert_eq!((refused, paid), (None, None));
        assert_eq!(day.reputation(0), before);
    }
    assert_eq!(before, 475, "the job that it lost by connecting anew");
}

#[test]
fn a_liar_gets_no_work_until_time_has_brought_it_back_and_connecting_anew_helps_nothing() {
    let mut day = Day::new(1);
    let (first, second, third) = (JobId::from_bits(1), JobId::from_bits(2), JobId::from_bits(3));
    day.hurry(first, TOLD_TOO_FAST);
    assert_eq!(day.submit(second), None);
    day.reconnect(0, ConnId(5));
    assert_eq!(day.submit(third), None);
    let waits = day.night.coordinator.explain(day.id(0), day.night.now).unwrap().explain.unwrap();
    let why = waits[0].why.as_deref();
    assert_eq!(why, Some("its reputation of 200 ‰ is below 250 ‰"));
    day.night.now = day.night.now.after(Duration::from_secs(24 * 3600));
    assert_eq!(runs_on(&day.reconnect(0, ConnId(6))), Some(ConnId(6)), "those that waited");
}

#[test]
fn what_a_node_did_is_known_after_a_restart() {
    let mut day = Day::new(1);
    day.hurry(JobId::from_bits(1), TOLD_TOO_FAST);
    let effects = day.happen(Event::Drain);
    let [Effect::NoteStandings(noted)] = &effects[..] else { panic!("{effects:?}") };
    let mut after = Day::new(1);
    after.night.now = day.night.now;
    after.happen(Event::Remembered(noted.clone()));
    assert_eq!(after.reputation(0), day.reputation(0));
    assert_eq!(after.submit(JobId::from_bits(2)), None);
}

#[test]
fn a_node_that_failed_three_times_rests_and_then_shows_whether_it_is_mended() {
    let mut day = Day::new(1);
    for number in 1..=3 {
        let job = JobId::from_bits(number);
        let conn = day.submit(job).unwrap();
        day.say(conn, failed(job, Failure::Internal));
    }
    let reason = |day: &Day| {
        let view = day.night.coordinator.explain(day.id(0), day.night.now).unwrap();
        view.explain.unwrap()[0].refusal
    };
    assert_eq!(reason(&day), Some(Refusal::Failing { failures: 3 }));
    day.night.now = day.night.now.after(Duration::from_secs(600));
    assert_eq!(reason(&day), None);
    let job = JobId::from_bits(4);
    let conn = day.submit(job).unwrap();
    day.say(conn, failed(job, Failure::Internal));
    assert_eq!(reason(&day), Some(Refusal::Failing { failures: 4 }));
    day.reconnect(0, ConnId(5));
    assert_eq!(reason(&day), None, "who starts anew is tried at once");
}

#[test]
fn each_model_that_a_node_offers_is_explained_in_the_dispatchers_words() {
    let mut day = Day::new(1);
    let unknown = ModelOffer {
        model: "somebody/his-own-model".parse().unwrap(),
        state: ModelState::Loaded,
        speed: None,
    };
    let cold = ModelOffer { state: ModelState::OnDisk, ..offers()[1].clone() };
    let heartbeat = ToCoordinator::Heartbeat {
        load: load(),
        memory_cap: Bytes::from_gib(4),
        offers: vec![offers()[0].clone(), cold.clone(), unknown, cold],
    };
    day.say(ConnId(0), heartbeat);
    let view = day.night.coordinator.explain(day.id(0), day.night.now.after(Duration::from_secs(3))).unwrap();
    assert_eq!((view.silent_seconds, view.reputation.get(), view.draining), (Some(3), 500, false));
    assert_eq!(view.models.len(), 2, "a model without a price is no offer, and one said twice is one");
    let [demo, heavy] = &view.explain.unwrap()[..] else { panic!("two models are offered") };
    assert_eq!((demo.would_serve, demo.refusal, &demo.why), (true, None, &None));
    assert!(matches!(heavy.refusal, Some(Refusal::NotEnoughMemory { .. })));
    assert_eq!(heavy.why, heavy.refusal.map(|refusal| refusal.to_string()));
    day.say(ConnId(0), ToCoordinator::Draining);
    let view = day.night.coordinator.explain(day.id(0), day.night.now).unwrap();
    assert_eq!(view.explain.unwrap()[0].refusal, Some(Refusal::Draining));
}

#[test]
fn a_node_that_the_operator_took_out_of_service_stays_out_when_it_connects_anew() {
    let mut day = Day::new(1);
    let provider = day.id(0);
    day.happen(Event::DrainProvider { provider, draining: true });
    day.reconnect(0, ConnId(5));
    assert_eq!(day.submit(JobId::from_bits(1)), None);
    let view = day.night.coordinator.explain(provider, day.night.now).unwrap();
    assert!(view.draining && view.withdrawn);
    assert!(view.explain.unwrap()[0].why.as_deref().unwrap().contains("operator"));
    let back = day.happen(Event::DrainProvider { provider, draining: false });
    assert_eq!(runs_on(&back), Some(ConnId(5)), "the job that waited");

    day.say(ConnId(5), ToCoordinator::Draining);
    day.happen(Event::DrainProvider { provider, draining: false });
    let view = day.night.coordinator.provider(provider).unwrap();
    assert!(view.draining && !view.withdrawn, "what it says of itself is its own");
}

#[test]
fn one_payer_has_so_many_jobs_open_and_no_more() {
    let mut day = Day::new(1);
    (
        day.night.coordinator.config.limits.jobs_per_key,
        day.night.coordinator.config.limits.jobs_per_address,
    ) = (3, 2);
    let key = |name: &str| Payer::Key(name.to_owned());
    let address = |text: &str| Payer::Demo(text.parse().unwrap());
    let mut number = 0;
    let mut ask = |day: &mut Day, payer| {
        number += 1;
        day.turned_away(submission(JobId::from_bits(number), payer))
    };
    for _ in 0..3 {
        assert_eq!(ask(&mut day, key("mine")), None);
    }
    assert_eq!(ask(&mut day, key("mine")), Some(JobError::TooManyOpen { most: 3 }));
    assert_eq!(ask(&mut day, key("yours")), None);
    assert_eq!(ask(&mut day, address("2001:db8::1")), None);
    assert_eq!(ask(&mut day, address("2001:db8::2")), None);
    assert_eq!(
        ask(&mut day, address("2001:db8::3")),
        Some(JobError::TooManyOpen { most: 2 }),
        "one subscriber"
    );
    let broke = HoldError::Unavailable;
    day.happen(Event::Held { job: JobId::from_bits(1), result: Err(broke) });
    assert_eq!(ask(&mut day, key("mine")), None, "one has ended");
}

#[test]
fn the_demo_key_never_fills_a_queue() {
    let mut day = Day::new(1);
    let (mut number, mut queued) = (0, 0);
    loop {
        number += 1;
        let job = JobId::from_bits(number);
        let payer = Payer::Demo(format!("10.0.0.{number}").parse().unwrap());
        match day.turned_away(submission(job, payer)) {
            None => {
                day.happen(Event::Held { job, result: Ok(()) });
                queued += 1;
            }
            Some(error) => break assert!(matches!(error, JobError::QueueFull(_))),
        }
    }
    assert_eq!(queued, 2 + 4, "two run, and half of eight places are taken");
    assert_eq!(day.turned_away(submission(JobId::from_bits(99), Payer::Key("key".to_owned()))), None);
}

#[test]
fn a_queue_is_no_longer_than_it_may_be_however_many_came_before_the_first_was_held() {
    let mut day = Day::new(1);
    let jobs: Vec<JobId> = (1..=20).map(JobId::from_bits).collect();
    for &job in &jobs {
        assert_eq!(day.turned_away(submission(job, Payer::Key("key".to_owned()))), None);
    }
    let held = |&job: &JobId| day.happen(Event::Held { job, result: Ok(()) });
    let refused = jobs.iter().map(held).filter(|effects| {
        effects.iter().any(|effect| {
            matches!(effect, Effect::Reply { reply: Reply::Failed { error: JobError::QueueFull(_), .. }, .. })
        })
    });
    assert_eq!(refused.count(), 20 - 2 - 8, "two run, and eight wait");
}

#[test]
fn a_share_of_one_place_is_a_place() {
    let mut day = Day::new(1);
    day.night.coordinator.config.limits.queue_per_model = 1;
    let demo = |job| submission(job, Payer::Demo("10.0.0.1".parse().unwrap()));
    assert_eq!(day.turned_away(demo(JobId::from_bits(1))), None);
}

#[test]
fn the_prompts_of_all_open_jobs_are_bounded_together() {
    let mut day = Day::new(1);
    let prompt = |job| submission(JobId::from_bits(job), Payer::Key("key".to_owned()));
    let bytes = plain(&mut prompt(1)).messages[0].content.as_str().len() as u64 + 64; // and what a template writes
    day.night.coordinator.config.limits.prompt_bytes = Bytes::new(2 * bytes);
    assert_eq!(day.turned_away(prompt(1)), None);
    assert_eq!(day.turned_away(prompt(2)), None);
    assert!(matches!(day.turned_away(prompt(3)), Some(JobError::QueueFull(_))));
    day.happen(Event::Held { job: JobId::from_bits(1), result: Err(HoldError::Unavailable) });
    assert_eq!(day.turned_away(prompt(4)), None);
}
