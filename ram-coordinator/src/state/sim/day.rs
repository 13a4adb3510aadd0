//! One thing at a time: what a coordinator does when a single thing goes right, or wrong.

use super::*;

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

/// A network of honest nodes, driven step by step.
struct Day {
    night: Night,
    effects: Vec<Effect>,
}

impl Day {
    /// `nodes` providers, on sockets 0, 1, …, each with two slots.
    fn new(nodes: usize) -> Self {
        let mut day = Self { night: Night::new(1, nodes), effects: Vec::new() };
        for n in 0..nodes {
            let (conn, nonce) = (ConnId(n as u64), Nonce::from_bytes([u8::try_from(n).unwrap(); 32]));
            day.happen(Event::SocketOpened { conn, nonce });
            let register = day.night.register(n, nonce);
            day.say(conn, register);
        }
        day
    }

    fn happen(&mut self, event: Event) -> &[Effect] {
        self.effects.clear();
        self.night.coordinator.handle(event, self.night.now, &mut self.effects);
        &self.effects
    }

    fn say(&mut self, conn: ConnId, message: ToCoordinator) -> &[Effect] {
        self.happen(Event::FromProvider { conn, message: Box::new(message) })
    }

    /// Submits a job; answers the socket that it goes to, if it goes anywhere.
    fn submit(&mut self, job: JobId) -> Option<ConnId> {
        self.happen(Event::Submit(Box::new(submission(job, Payer::Key("key".to_owned())))));
        runs_on(self.happen(Event::Held { job, result: Ok(()) }))
    }

    fn later(&mut self, time: Duration) -> &[Effect] {
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
    let helps = runs_on(day.later(Duration::from_secs(4))).unwrap();
    assert_ne!(hangs, helps);
    let second = Attempt::FIRST.next();
    day.say(helps, ToCoordinator::Accepted { job, attempt: second, prompt: TokenCount::new(5) });
    assert_eq!(day.happen(Event::SocketClosed { conn: hangs }), []);
    let usage = Usage { prompt: TokenCount::new(5), ..Usage::default() };
    let outcome = Outcome::Done { finish: FinishReason::Stop, usage };
    let paid = day.say(helps, ToCoordinator::Finished { job, attempt: second, outcome });
    assert!(matches!(paid, [Effect::Settle(order)] if order.attempt == second));
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
    assert_eq!(runs_on(effects), Some(conn), "the third job has the slot");
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
