//! Who is here: sockets, the nodes behind them, and what each one offers.
//!
//! ```text
//! socket opens -> Challenged{nonce} --register, signature good--> Registered(provider)
//!                      |  10 s without a word                        |  25 s without a word, or closed
//!                      v                                             v
//!                    closed                                        gone
//! ```
//!
//! A node that registers again supersedes its older session: the epoch rises, the ghost's socket is closed and whatever
//! it still says is ignored, because nothing leads from its socket to a node any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use ram_core::catalog;
use ram_core::id::{Epoch, GroupId, JobId, ModelId, NodeKey, ProviderId};
use ram_core::provider::{Hardware, Load, ModelOffer, OFFERS_MAX, ProviderSpec};
use ram_core::route::Candidate;
use ram_core::units::{Bytes, Permille, Timestamp};
use ram_core::validate::Recent;
use ram_crypto::statement::{Expected, Statement, StatementError};
use ram_proto::blob::Blob;
use ram_proto::control::shard::ShardReport;
use ram_proto::control::{
    Capabilities, Capability, HEARTBEAT_LOST_MS, NodeStatement, Nonce, Register, RejectReason, Signature,
};

use ram_proto::rest::E2eOffered;

use super::event::ConnId;

/// How long a socket may stay without registering: one round trip and a signature, with room for a slow line.
const REGISTER_WITHIN: Duration = Duration::from_secs(10);
/// A statement may be valid for this long at most, so that a stolen one dies; nonces make it useless anyway.
const STATEMENT_VALID_MAX: Duration = Duration::from_secs(600);
/// How long a node rests that has failed too many jobs in a row: then one job shows whether it has been mended.
const REST: Duration = Duration::from_secs(600);
/// Most jobs that a node may run at once, whatever it says: as many as `ram-provider` lets an operator set.
const SLOTS_MAX: u16 = 256;
/// Longest text in a node's description of its hardware, in bytes.
const HARDWARE_TEXT_BYTES_MAX: usize = 128;

/// All sockets and nodes.
#[derive(Debug, Default)]
pub(super) struct Registry {
    sockets: HashMap<ConnId, Socket>,
    nodes: BTreeMap<ProviderId, Node>,
    /// Which nodes offer a model, so that a choice looks at those alone.
    by_model: ByModel,
    /// Those that the operator took out of service: no word of theirs and no new session changes that.
    withdrawn: BTreeSet<ProviderId>,
    last_epoch: Epoch,
}

#[derive(Debug)]
enum Socket {
    Challenged { nonce: Nonce, since: Timestamp },
    Registered(ProviderId),
}

/// A provider that is here.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) conn: ConnId,
    pub(super) key: NodeKey,
    pub(super) spec: ProviderSpec,
    /// Its last word on how busy it is; `running` counts only what did not come from us.
    pub(super) load: Load,
    pub(super) since: Timestamp,
    pub(super) last_word: Timestamp,
    /// It says itself that it takes no new jobs.
    pub(super) draining: bool,
    /// Jobs in a row that it failed by its own fault, and when it failed the last one.
    pub(super) strikes: u32,
    pub(super) struck_at: Timestamp,
    /// Its last long answers.
    pub(super) recent: Recent,
    /// Jobs that we gave it and that have not ended, whatever its last heartbeat said.
    pub(super) running: BTreeSet<JobId>,
    /// Whether it knows of shards.
    pub(super) knows_shards: bool,
    /// Whether it opens sealed prompts.
    pub(super) knows_sealed: bool,
    /// What it lends to groups, and how its shards do.
    pub(super) shards: ShardReport,
    /// What it stated, and its signature, for those who seal prompts to it.
    stated: Box<(NodeStatement, Signature)>,
    /// The pipelines that it is the head of, with what they offer.
    heads: Vec<(GroupId, ModelOffer)>,
}

/// What a good registration changed.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) provider: ProviderId,
    pub(super) epoch: Epoch,
    pub(super) capabilities: Capabilities,
    /// The session that this one supersedes, with its jobs.
    pub(super) ghost: Option<(ConnId, BTreeSet<JobId>)>,
}

/// Whom a coordinator admits.
#[derive(Clone, Debug)]
pub(super) struct Admission<'a> {
    pub(super) network: u64,
    pub(super) name: &'a str,
    pub(super) providers_max: usize,
}

impl Registry {
    pub(super) fn open(&mut self, conn: ConnId, nonce: Nonce, now: Timestamp) {
        self.sockets.insert(conn, Socket::Challenged { nonce, since: now });
    }

    /// Forgets a socket; answers the provider that was on it, with the jobs it held.
    pub(super) fn close(&mut self, conn: ConnId) -> Option<(ProviderId, BTreeSet<JobId>)> {
        match self.sockets.remove(&conn)? {
            Socket::Challenged { .. } => None,
            Socket::Registered(provider) => Some((provider, self.remove(provider)?.running)),
        }
    }

    /// The provider on this socket, if it has registered and not been superseded.
    pub(super) fn provider_on(&self, conn: ConnId) -> Option<ProviderId> {
        match self.sockets.get(&conn)? {
            Socket::Challenged { .. } => None,
            Socket::Registered(provider) => Some(*provider),
        }
    }

    /// Checks a registration and lets the node in.
    pub(super) fn register(
        &mut self,
        conn: ConnId,
        register: Register,
        admission: &Admission<'_>,
        now: Timestamp,
    ) -> Result<Admitted, RejectReason> {
        let Some(Socket::Challenged { nonce, .. }) = self.sockets.get(&conn) else {
            return Err(RejectReason::BadNonce); // one registration a socket: the nonce is used up
        };
        let capabilities = Capabilities::ours().common(&register.capabilities);
        if register.capabilities.is_over_limit() || !capabilities.has(Capability::CHAT_V1) {
            return Err(RejectReason::NoCommonCapability);
        }
        verify(&register, nonce, admission, now)?;
        check_spec(&register)?;
        let provider = register.statement.node_key.provider_id();
        if !self.nodes.contains_key(&provider) && self.nodes.len() >= admission.providers_max {
            return Err(RejectReason::Full);
        }
        let ghost = self.remove(provider).map(|ghost| {
            self.sockets.remove(&ghost.conn);
            (ghost.conn, ghost.running)
        });
        // Rises over restarts too, with nothing stored.
        self.last_epoch = self.last_epoch.next().max(Epoch::new(now.as_millis()));
        let epoch = self.last_epoch;
        self.sockets.insert(conn, Socket::Registered(provider));
        let spec = ProviderSpec { offers: known(register.spec.offers), ..register.spec };
        index(&mut self.by_model, provider, spec.offers.iter());
        let node = Node {
            conn,
            key: register.statement.node_key,
            spec,
            load: bounded(register.load),
            since: now,
            last_word: now,
            draining: false,
            strikes: 0,
            struck_at: now,
            recent: Recent::default(),
            running: BTreeSet::new(),
            knows_shards: capabilities.has(Capability::SHARD_V1),
            knows_sealed: capabilities.has(Capability::SEALED_V1),
            shards: ShardReport::default(),
            stated: Box::new((register.statement, register.signature)),
            heads: Vec::new(),
        };
        self.nodes.insert(provider, node);
        Ok(Admitted { provider, epoch, capabilities, ghost })
    }

    /// Takes a heartbeat; `false` when its offers are over the limit and the socket should be closed.
    #[must_use]
    pub(super) fn heartbeat(
        &mut self,
        provider: ProviderId,
        load: Load,
        memory_cap: Bytes,
        offers: Vec<ModelOffer>,
    ) -> bool {
        let Some(node) = self.nodes.get_mut(&provider) else { return true };
        if offers.len() > OFFERS_MAX {
            return false;
        }
        let offers = known(offers);
        // What it says may be a heartbeat old. Ours are counted here, by the message; only foreign ones are believed.
        let foreign = load.running.saturating_sub(count(&node.running));
        node.load = Load { running: foreign, ..bounded(load) };
        node.spec.memory_cap = memory_cap.min(node.spec.hardware.usable_memory);
        if node.spec.offers != offers {
            unindex(&mut self.by_model, provider, node.offers());
            node.spec.offers = offers;
            index(&mut self.by_model, provider, node.offers());
        }
        true
    }

    /// A node offers a model as the head of a pipeline; without an offer it does so no more.
    pub(super) fn set_head(&mut self, provider: ProviderId, group: GroupId, offer: Option<ModelOffer>) {
        let Some(node) = self.nodes.get_mut(&provider) else { return };
        unindex(&mut self.by_model, provider, node.offers());
        node.heads.retain(|(held, _)| *held != group);
        node.heads.extend(offer.map(|offer| (group, offer)));
        index(&mut self.by_model, provider, node.offers());
    }

    pub(super) fn node(&self, provider: ProviderId) -> Option<&Node> {
        self.nodes.get(&provider)
    }

    pub(super) fn node_mut(&mut self, provider: ProviderId) -> Option<&mut Node> {
        self.nodes.get_mut(&provider)
    }

    /// Takes a node that is here out of service, or back in. At most `most` are remembered, as many as may be here: of
    /// more, those that are away are forgotten.
    pub(super) fn withdraw(&mut self, provider: ProviderId, withdrawn: bool, most: usize) {
        if !withdrawn {
            self.withdrawn.remove(&provider);
        } else if self.nodes.contains_key(&provider) {
            self.withdrawn.insert(provider);
            if self.withdrawn.len() > most {
                self.withdrawn.retain(|provider| self.nodes.contains_key(provider));
            }
        }
    }

    /// Whether the operator took a node out of service.
    pub(super) fn is_withdrawn(&self, provider: ProviderId) -> bool {
        self.withdrawn.contains(&provider)
    }

    /// Whether a node gets no new jobs, by its own word or by the operator's.
    pub(super) fn is_draining(&self, provider: ProviderId, node: &Node) -> bool {
        node.draining || self.is_withdrawn(provider)
    }

    /// A node, as a choice for a job with `model` sees it.
    pub(super) fn candidate<'a>(
        &self,
        provider: ProviderId,
        node: &'a Node,
        model: &ModelId,
        reputation: Permille,
        now: Timestamp,
    ) -> Candidate<'a> {
        let has_rested = now.since(node.struck_at) >= REST;
        Candidate {
            provider,
            wallet: node.spec.wallet,
            offer: node.offer(model),
            load: node.load_now(),
            in_flight: count(&node.running),
            reputation,
            draining: self.is_draining(provider, node),
            strikes: if has_rested { 0 } else { node.strikes },
        }
    }

    pub(super) fn nodes(&self) -> impl ExactSizeIterator<Item = (ProviderId, &Node)> {
        self.nodes.iter().map(|(&provider, node)| (provider, node))
    }

    /// Sockets that have not registered yet.
    pub(super) fn unregistered(&self) -> usize {
        self.sockets.len().saturating_sub(self.nodes.len())
    }

    /// Nodes that offer `model`, in order of their ids.
    pub(super) fn offering<'a>(&'a self, model: &ModelId) -> impl Iterator<Item = (ProviderId, &'a Node)> {
        self.by_model
            .get(model)
            .into_iter()
            .flatten()
            .filter_map(|provider| Some((*provider, self.nodes.get(provider)?)))
    }

    /// Models that anyone here offers, by full id.
    pub(super) fn models(&self) -> impl Iterator<Item = &ModelId> {
        self.by_model.keys()
    }

    /// Sockets that have said nothing for too long.
    pub(super) fn silent(&self, now: Timestamp) -> Vec<ConnId> {
        let lost = Duration::from_millis(HEARTBEAT_LOST_MS);
        let waiting = self.sockets.iter().filter_map(|(&conn, socket)| match socket {
            Socket::Challenged { since, .. } if now.since(*since) > REGISTER_WITHIN => Some(conn),
            _ => None,
        });
        let gone = self.nodes.values().filter(|node| now.since(node.last_word) > lost).map(|node| node.conn);
        let mut silent: Vec<ConnId> = waiting.chain(gone).collect();
        silent.sort_unstable(); // a map's order must not reach the effects
        silent
    }

    /// Moves all that was last heard forward by a pause in which nobody could be heard.
    pub(super) fn forgive(&mut self, pause: Duration) {
        for socket in self.sockets.values_mut() {
            if let Socket::Challenged { since, .. } = socket {
                *since = since.after(pause);
            }
        }
        for node in self.nodes.values_mut() {
            node.last_word = node.last_word.after(pause);
        }
    }

    fn remove(&mut self, provider: ProviderId) -> Option<Node> {
        let node = self.nodes.remove(&provider)?;
        unindex(&mut self.by_model, provider, node.offers());
        Some(node)
    }
}

/// The offers of models that the catalogue knows by full id, each once: all others have no price, are offered to
/// nobody, and would only be carried about.
fn known(offers: Vec<ModelOffer>) -> Vec<ModelOffer> {
    let mut seen = BTreeSet::new();
    let mut is_new = |offer: &ModelOffer| {
        let spec = catalog::resolve(offer.model.as_str()).filter(|spec| spec.id == offer.model.as_str());
        spec.is_some_and(|spec| seen.insert(spec.id))
    };
    offers.into_iter().filter(|offer| is_new(offer)).collect()
}

type ByModel = BTreeMap<ModelId, BTreeSet<ProviderId>>;

fn index<'a>(by_model: &mut ByModel, provider: ProviderId, offers: impl Iterator<Item = &'a ModelOffer>) {
    for offer in offers {
        by_model.entry(offer.model.clone()).or_default().insert(provider);
    }
}

fn unindex<'a>(by_model: &mut ByModel, provider: ProviderId, offers: impl Iterator<Item = &'a ModelOffer>) {
    for offer in offers {
        if let Some(providers) = by_model.get_mut(&offer.model) {
            providers.remove(&provider);
            if providers.is_empty() {
                by_model.remove(&offer.model);
            }
        }
    }
}

impl Node {
    /// Whom to seal a prompt to, in its own words; `None` of a node that opens none.
    pub(super) fn offered(&self) -> Option<E2eOffered> {
        let (statement, signature) = &*self.stated;
        self.knows_sealed.then(|| E2eOffered {
            provider_id: self.key.provider_id(),
            provider_name: self.spec.name.clone(),
            provider_public_key_b64: Blob::new(statement.e2e_key.as_bytes()),
            statement: statement.clone(),
            signature: *signature,
        })
    }

    /// What this node offers: alone, then as the head of pipelines.
    pub(super) fn offers(&self) -> impl Iterator<Item = &ModelOffer> {
        self.spec.offers.iter().chain(self.heads.iter().map(|(_, offer)| offer))
    }

    /// What this node offers of `model`.
    pub(super) fn offer(&self, model: &ModelId) -> Option<&ModelOffer> {
        self.offers().find(|offer| &offer.model == model)
    }

    /// The pipeline over which it serves `model`, unless it has it whole.
    pub(super) fn pipeline(&self, model: &ModelId) -> Option<GroupId> {
        let is_whole = self.spec.offers.iter().any(|offer| &offer.model == model);
        let (group, _) = self.heads.iter().find(|(_, offer)| &offer.model == model)?;
        (!is_whole).then_some(*group)
    }

    /// How busy it is now: our jobs by our own count, and those that it has from elsewhere.
    pub(super) fn load_now(&self) -> Load {
        Load { running: self.load.running.saturating_add(count(&self.running)), ..self.load }
    }
}

/// A load with no more slots than any machine has: they weigh in the price, and they draw jobs.
fn bounded(load: Load) -> Load {
    Load { slots: load.slots.min(SLOTS_MAX), ..load }
}

fn count(jobs: &BTreeSet<JobId>) -> u16 {
    u16::try_from(jobs.len()).unwrap_or(u16::MAX)
}

/// Checks the signature over what was said, against what we asked.
fn verify(
    register: &Register,
    nonce: &Nonce,
    admission: &Admission<'_>,
    now: Timestamp,
) -> Result<(), RejectReason> {
    let latest = now.after(STATEMENT_VALID_MAX);
    if register.statement.expires_at > latest {
        return Err(RejectReason::Expired);
    }
    let expected = Expected {
        network: admission.network,
        coordinator: admission.name,
        nonce: *nonce.as_bytes(),
        now_ms: now.as_millis(),
    };
    statement(&register.statement).verify(register.signature.as_bytes(), expected).map_err(
        |error| match error {
            StatementError::WrongNetwork { .. } => RejectReason::WrongNetwork,
            StatementError::WrongCoordinator => RejectReason::WrongCoordinator,
            StatementError::WrongNonce => RejectReason::BadNonce,
            StatementError::Expired => RejectReason::Expired,
            _ => RejectReason::BadSignature,
        },
    )
}

/// The wire's statement in the words of `ram-crypto`, which knows bytes only.
fn statement(wire: &NodeStatement) -> Statement {
    Statement {
        network: wire.network,
        coordinator: wire.coordinator.clone(),
        nonce: *wire.nonce.as_bytes(),
        node_key: *wire.node_key.as_bytes(),
        e2e_key: *wire.e2e_key.as_bytes(),
        wallet: wire.wallet.map(|wallet| *wallet.as_bytes()),
        name: wire.name.as_str().to_owned(),
        expires_ms: wire.expires_at.as_millis(),
    }
}

/// Checks what was not signed against what was, and against the limits.
fn check_spec(register: &Register) -> Result<(), RejectReason> {
    let Register { statement, spec, .. } = register;
    let Hardware { chip, os, memory, usable_memory, .. } = &spec.hardware;
    let texts_fit = [chip, os, &spec.version].iter().all(|text| text.len() <= HARDWARE_TEXT_BYTES_MAX);
    let good = spec.name == statement.name
        && spec.wallet == statement.wallet
        && spec.offers.len() <= OFFERS_MAX
        && usable_memory <= memory
        && spec.memory_cap <= *usable_memory
        && texts_fit;
    if good { Ok(()) } else { Err(RejectReason::BadSpec) }
}
