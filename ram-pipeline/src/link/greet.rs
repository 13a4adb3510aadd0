//! The first words on a link: who dials says HELLO, who accepts answers WELCOME, or ERROR with the reason.
//!
//! ```text
//! dials: dial(link, hello)                    accepts: hear(link)
//!   | -- HELLO ---------------------------------> |  within GREETING_MS, under Limits::STRANGER
//!   |                                             Caller: who, and what it wants
//!   | <- WELCOME -------------------------------- |  Caller::welcome -> Open, from here on Limits::FULL
//!   | <- ERROR, and the end of the stream ------- |  Caller::refuse, or at once when HELLO is none
//! ```
//!
//! Start at [`accept`], which knows what it expects; [`hear`] is for who has to look it up. To whom others come for
//! files, too, [`hear_any`] tells both apart: see [`fetch`](super::fetch).

use std::time::Duration;

use ram_core::id::NodeKey;
use ram_proto::frame::{Code, Decoded, Frame, Head, Hello, Limits, Refusal, VERSION, Welcome};
use tokio::io::{ReadHalf, WriteHalf};

use super::fetch::Asker;
use super::frames::{self, Incoming, Outgoing};
use super::{GREETING, Link, LinkError, within};

/// A link after the greetings.
#[derive(Debug)]
pub struct Open<L> {
    /// Who is at the other end, where the link proves it.
    pub peer: Option<NodeKey>,
    /// What the link is for, by who made it.
    pub hello: Hello,
    /// What who accepted it has room for.
    pub welcome: Welcome,
    /// Frames that come.
    pub incoming: Incoming<ReadHalf<L>>,
    /// Frames that go.
    pub outgoing: Outgoing<WriteHalf<L>>,
}

/// Somebody who said HELLO and waits for an answer.
#[derive(Debug)]
pub struct Caller<L> {
    peer: Option<NodeKey>,
    hello: Hello,
    incoming: Incoming<ReadHalf<L>>,
    outgoing: Outgoing<WriteHalf<L>>,
}

/// Who has come.
#[derive(Debug)]
pub enum Heard<L> {
    /// Somebody who said HELLO.
    Caller(Caller<L>),
    /// Somebody who wants a file.
    Asker(Asker<L>),
}

/// Says HELLO on a new link, and waits for WELCOME.
///
/// # Errors
/// [`LinkError`]: [`LinkError::Refused`] with the reason if the other end gives one.
pub async fn dial<L: Link>(link: L, hello: Hello) -> Result<Open<L>, LinkError> {
    let peer = link.peer();
    let (mut incoming, mut outgoing) = frames::over(link, Limits::STRANGER);
    let welcome = within(GREETING, async {
        outgoing.send(&Head::Hello(hello.clone()).into()).await?;
        match incoming.next().await? {
            Decoded::Known(Frame { head: Head::Welcome(welcome), .. }) if welcome.version == VERSION => {
                Ok(welcome)
            }
            Decoded::Known(Frame { head: Head::Welcome(_), .. }) => {
                Err(LinkError::Declined(Code::WrongVersion))
            }
            Decoded::Known(Frame { head: Head::Error(refusal), .. }) => Err(LinkError::Refused(refusal)),
            _ => Err(LinkError::OutOfTurn("WELCOME")),
        }
    })
    .await?;
    incoming.decoder().set_limits(Limits::FULL);
    Ok(Open { peer, hello, welcome, incoming, outgoing })
}

/// Hears a new link's HELLO.
///
/// # Errors
/// [`LinkError`]; the other end was told why, unless it said nothing, and the link is closed.
pub async fn hear<L: Link>(link: L) -> Result<Caller<L>, LinkError> {
    match hear_any(link).await? {
        Heard::Caller(caller) => Ok(caller),
        Heard::Asker(asker) => {
            asker.refuse(Code::Protocol).await;
            Err(LinkError::OutOfTurn("HELLO"))
        }
    }
}

/// Hears a new link's first word: HELLO, or FETCH.
///
/// # Errors
/// [`LinkError`]; the other end was told why, unless it said nothing, and the link is closed.
pub async fn hear_any<L: Link>(link: L) -> Result<Heard<L>, LinkError> {
    let peer = link.peer();
    let (mut incoming, mut outgoing) = frames::over(link, Limits::STRANGER);
    let error = match within(GREETING, incoming.next()).await {
        Ok(Decoded::Known(Frame { head: Head::Hello(hello), .. })) => {
            return Ok(Heard::Caller(Caller { peer, hello, incoming, outgoing }));
        }
        Ok(Decoded::Known(Frame { head: Head::Fetch(fetch), .. })) => {
            return Ok(Heard::Asker(Asker { peer, fetch, incoming, outgoing }));
        }
        Ok(_) => LinkError::OutOfTurn("HELLO"),
        Err(error) => error,
    };
    if error.is_peers_fault() {
        refuse(&mut incoming, &mut outgoing, Code::Protocol, None).await;
    }
    Err(error)
}

/// Hears a new link's HELLO, and answers WELCOME if it is as `expected`.
///
/// # Errors
/// [`LinkError`]: [`LinkError::Declined`] if it is another, and the other end was told why. The link is closed.
pub async fn accept<L: Link>(link: L, expected: &Hello, welcome: Welcome) -> Result<Open<L>, LinkError> {
    let caller = hear(link).await?;
    match check(&caller.hello, expected) {
        Ok(()) => caller.welcome(welcome).await,
        Err(code) => Err(caller.refuse(code, None).await),
    }
}

/// Whether a HELLO is the one that was waited for.
///
/// # Errors
/// [`Code`] of the first thing that differs: version, model, layers, epoch, numbers, direction.
pub fn check(hello: &Hello, expected: &Hello) -> Result<(), Code> {
    let agree = |same: bool, code| if same { Ok(()) } else { Err(code) };
    agree(hello.version == expected.version, Code::WrongVersion)?;
    agree(hello.model == expected.model, Code::WrongModel)?;
    agree(hello.layers == expected.layers, Code::WrongLayers)?;
    agree(hello.epoch == expected.epoch, Code::WrongEpoch)?;
    agree((hello.dtype, hello.width) == (expected.dtype, expected.width), Code::WrongShape)?;
    agree(hello.carries == expected.carries, Code::Protocol)
}

impl<L: Link> Caller<L> {
    /// Who it is, where the link proves it.
    #[must_use]
    pub const fn peer(&self) -> Option<NodeKey> {
        self.peer
    }

    /// What it wants.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`LinkError`]: it did not wait for the answer, in one way or the other.
    pub async fn welcome(self, welcome: Welcome) -> Result<Open<L>, LinkError> {
        let Self { peer, hello, mut incoming, mut outgoing } = self;
        if !incoming.decoder().is_empty() {
            refuse(&mut incoming, &mut outgoing, Code::Protocol, None).await;
            return Err(LinkError::OutOfTurn("WELCOME"));
        }
        within(GREETING, outgoing.send(&Head::Welcome(welcome.clone()).into())).await?;
        incoming.decoder().set_limits(Limits::FULL);
        Ok(Open { peer, hello, welcome, incoming, outgoing })
    }

    /// Tells it why not, and closes the link; says what happened.
    pub async fn refuse(mut self, code: Code, retry_after_ms: Option<u32>) -> LinkError {
        refuse(&mut self.incoming, &mut self.outgoing, code, retry_after_ms).await;
        LinkError::Declined(code)
    }
}

/// Says why not, and that nothing more will come; then waits a little for the other end to close.
///
/// A socket that is closed with something unread takes back what was sent last, and with it the reason.
pub(super) async fn refuse<L: Link>(
    incoming: &mut Incoming<ReadHalf<L>>,
    outgoing: &mut Outgoing<WriteHalf<L>>,
    code: Code,
    retry_after_ms: Option<u32>,
) {
    let refusal = Head::Error(Refusal { of: None, code, retry_after_ms }).into();
    let told = async {
        outgoing.send(&refusal).await?;
        outgoing.finish().await?;
        incoming.drain().await;
        Ok(())
    };
    // Who does not hear it is gone, or does not want to: nothing is lost either way.
    let _ = within(LINGER, told).await;
}

/// How long an end that has said its last waits for the other to close: some ways there and back.
pub(super) const LINGER: Duration = Duration::from_millis(1_000);
