//! Keys: who calls, told by a bearer token.
//!
//! | kind | looks like | who has it |
//! |---|---|---|
//! | demo | `xram_free_test` | everybody; the network pays, within a budget for each address and day |
//! | live | `xram_live_` and 64 hexadecimal digits | one user, with an account of its own |
//! | agent | `xram_agent_` and 64 hexadecimal digits | one program, with an account of its own |
//!
//! A made key is 256 random bits, so its SHA-256 alone is kept: nothing short of all of it can be guessed, and a slow
//! password hash would only slow the gateway. It is looked up *by* that hash. A stranger cannot steer a hash towards a
//! stored one, so how long the lookup takes tells nothing about any key, and no constant-time comparison is needed.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use ram_chain::account::{KeyId, Reference};
use ram_core::units::{Timestamp, XRam};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store::{Credit, Store, StoreError};

/// The key that everybody may use.
pub const DEMO_KEY: &str = "xram_free_test";
/// Longest name of a key, in characters: what a line of `keys list` can show.
pub const KEY_NAME_CHARS_MAX: usize = 64;
/// Shortest key that somebody may choose.
pub const CHOSEN_BYTES_MIN: usize = 8;
/// Longest key that somebody may choose: ours have 77 bytes.
pub const CHOSEN_BYTES_MAX: usize = 128;
/// How long a looked-up key is believed, in milliseconds: a revoked key works for at most this long.
const BELIEVED_MS: u64 = 500;
/// Most keys remembered at once: 2 MB. More callers than that within half a second pay one lookup each.
const REMEMBERED_MAX: usize = 10_000;

/// What a made key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// A user's.
    Live,
    /// A program's.
    Agent,
}

/// What the store knows of a key: all but the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its public id, by which it is named, paid and revoked.
    pub id: KeyId,
    /// What it is for.
    pub kind: KeyKind,
    /// What its owner called it.
    pub name: String,
    /// Its kind's prefix and its last four digits, such as `xram_live_…9f3a`.
    pub hint: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// SHA-256 of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

/// A key in the clear. `Debug` hides it; it is shown once, when it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySecret(String);

/// A key as it is made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// What it is for.
    pub kind: KeyKind,
    /// What its owner calls it.
    pub name: String,
    /// What it can spend from the start; released from the treasury.
    pub credit: XRam,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with the demo key.
    Demo,
    /// The holder of a key with an account: its public id.
    Key(KeyId),
}

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not a key of this network, or a revoked one. Which of the two is nobody's business.
    #[error("the key is unknown or revoked")]
    Unknown,
    /// A name is empty, too long, or holds control characters.
    #[error("a key's name is 1 to {KEY_NAME_CHARS_MAX} characters without control characters")]
    BadName,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key that somebody chose is too short, too long, or does not fit into a header.
    #[error(
        "a chosen key is {CHOSEN_BYTES_MIN} to {CHOSEN_BYTES_MAX} visible ASCII characters, and not the demo key"
    )]
    BadSecret,
    /// The operating system gave no random bits.
    #[error("the operating system gave no random bits")]
    NoRandomness,
}

/// The keys of a network.
#[derive(Debug)]
pub struct Keys {
    store: Arc<dyn Store>,
    demo: DemoKey,
    remembered: Mutex<HashMap<KeyHash, (KeyRecord, Timestamp)>>,
}

/// Whether [`DEMO_KEY`] opens this network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DemoKey {
    /// It does.
    #[default]
    On,
    /// It does not.
    Off,
}

impl Keys {
    /// The keys kept in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, demo: DemoKey) -> Self {
        Self { store, demo, remembered: Mutex::default() }
    }

    /// Who holds `key`.
    ///
    /// # Errors
    /// [`KeyError::Unknown`] when nobody does (any more), [`KeyError::Store`] when that cannot be told now.
    pub async fn caller(&self, key: &str, now: Timestamp) -> Result<Caller, KeyError> {
        if key == DEMO_KEY {
            return if self.demo == DemoKey::On { Ok(Caller::Demo) } else { Err(KeyError::Unknown) };
        }
        let hash = KeyHash::of(key);
        let record = match self.remembered(hash, now) {
            Some(record) => record,
            None => self.look_up(hash, now).await?,
        };
        if record.revoked_at.is_some() { Err(KeyError::Unknown) } else { Ok(Caller::Key(record.id)) }
    }

    /// Makes a key; the secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`KeyError::BadName`] for a name that cannot be shown, else the world's failures.
    pub async fn create(&self, new: NewKey, now: Timestamp) -> Result<(KeyRecord, KeySecret), KeyError> {
        let secret = KeySecret::random(new.kind)?;
        let record = self.keep(new, &secret, now).await?;
        Ok((record, secret))
    }

    /// Takes a key that somebody chose, for development: what a person chooses can be guessed.
    ///
    /// # Errors
    /// [`KeyError::BadSecret`] and [`KeyError::BadName`], else the world's failures, such as that the key is taken.
    pub async fn adopt(&self, new: NewKey, key: &str, now: Timestamp) -> Result<KeyRecord, KeyError> {
        let length = CHOSEN_BYTES_MIN..=CHOSEN_BYTES_MAX;
        if !length.contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) || key == DEMO_KEY
        {
            return Err(KeyError::BadSecret);
        }
        self.keep(new, &KeySecret(key.to_owned()), now).await
    }

    async fn keep(&self, new: NewKey, secret: &KeySecret, now: Timestamp) -> Result<KeyRecord, KeyError> {
        let length = new.name.chars().take(KEY_NAME_CHARS_MAX + 1).count();
        if length == 0 || length > KEY_NAME_CHARS_MAX || new.name.chars().any(char::is_control) {
            return Err(KeyError::BadName);
        }
        let record = KeyRecord {
            id: key_id(random()?),
            kind: new.kind,
            name: new.name,
            hint: secret.hint(new.kind),
            created_at: now,
            revoked_at: None,
        };
        let credit = Credit { reference: reference()?, amount: new.credit };
        self.store.create_key(record.clone(), KeyHash::of(&secret.0), credit).await?;
        Ok(record)
    }

    /// Moves money from the treasury to a key; answers what the key can spend then.
    ///
    /// # Errors
    /// [`StoreError::UnknownKey`] when there is no such key, else the world's failures.
    pub async fn credit(&self, id: &KeyId, amount: XRam, now: Timestamp) -> Result<XRam, KeyError> {
        let credit = Credit { reference: reference()?, amount };
        Ok(self.store.credit(id.clone(), credit, now).await?)
    }

    /// All keys, oldest first, with what each can spend.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self) -> Result<Vec<(KeyRecord, XRam)>, StoreError> {
        self.store.keys().await
    }

    /// Refuses a key from now on: here at once, in other processes on the same store within half a second.
    ///
    /// # Errors
    /// [`KeyError::Unknown`] when there is no such id.
    pub async fn revoke(&self, id: &KeyId, now: Timestamp) -> Result<KeyRecord, KeyError> {
        let record = self.store.revoke_key(id.clone(), now).await?.ok_or(KeyError::Unknown)?;
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, (known, _)| known.id != *id);
        Ok(record)
    }

    /// Whether this key has been good here lately, so that looking it up again is no guess.
    pub(crate) fn knows(&self, key: &str) -> bool {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.contains_key(&KeyHash::of(key))
    }

    fn remembered(&self, hash: KeyHash, now: Timestamp) -> Option<KeyRecord> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, looked_up) = remembered.get(&hash)?;
        // A clock that was set back must not keep a revoked key alive.
        let fresh = now >= *looked_up && now.as_millis() - looked_up.as_millis() < BELIEVED_MS;
        fresh.then(|| record.clone())
    }

    async fn look_up(&self, hash: KeyHash, now: Timestamp) -> Result<KeyRecord, KeyError> {
        let record = self.store.key_of(hash).await?.ok_or(KeyError::Unknown)?;
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(hash, (record.clone(), now));
        Ok(record)
    }
}

impl KeyKind {
    /// How keys of this kind begin.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Live => "xram_live_",
            Self::Agent => "xram_agent_",
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Agent => "agent",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text names no kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key that can be made is `live` or `agent`")]
pub struct KeyKindError;

impl FromStr for KeyKind {
    type Err = KeyKindError;

    fn from_str(text: &str) -> Result<Self, KeyKindError> {
        [Self::Live, Self::Agent].into_iter().find(|kind| kind.as_str() == text).ok_or(KeyKindError)
    }
}

impl KeyHash {
    /// The hash of `key`.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Its 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl KeySecret {
    fn random(kind: KeyKind) -> Result<Self, KeyError> {
        Ok(Self(format!("{}{}", kind.prefix(), hex(&random::<32>()?))))
    }

    /// The key itself, to show it to its owner.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn hint(&self, kind: KeyKind) -> String {
        let prefix = if self.0.starts_with(kind.prefix()) { kind.prefix() } else { "" };
        format!("{prefix}…{}", &self.0[self.0.len() - 4..])
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(hidden)")
    }
}

fn key_id(bits: [u8; 8]) -> KeyId {
    format!("key_{}", hex(&bits)).parse().expect("letters, digits and an underscore are an id")
}

fn reference() -> Result<Reference, KeyError> {
    Ok(Reference::from_bits(u128::from_be_bytes(random()?)))
}

/// Random bits from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| KeyError::NoRandomness)?;
    Ok(bytes)
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::SqliteStore;

    fn keys(demo: DemoKey) -> Keys {
        Keys::new(Arc::new(SqliteStore::in_memory().unwrap()), demo)
    }

    fn live(name: &str) -> NewKey {
        NewKey { kind: KeyKind::Live, name: name.to_owned(), credit: XRam::ZERO }
    }

    #[tokio::test]
    async fn a_made_key_is_known_and_a_changed_one_is_not() {
        let keys = keys(DemoKey::On);
        let (record, secret) = keys.create(live("mine"), Timestamp::ZERO).await.unwrap();
        assert_eq!(keys.caller(secret.reveal(), Timestamp::ZERO).await.unwrap(), Caller::Key(record.id));
        let changed = format!("{}0", secret.reveal());
        assert!(matches!(keys.caller(&changed, Timestamp::ZERO).await, Err(KeyError::Unknown)));
    }

    #[tokio::test]
    async fn a_revoked_key_is_refused_at_once_here_and_within_a_second_elsewhere() {
        let store: Arc<dyn Store> = Arc::new(SqliteStore::in_memory().unwrap());
        let (here, elsewhere) = (Keys::new(Arc::clone(&store), DemoKey::On), Keys::new(store, DemoKey::On));
        let (record, secret) = here.create(live("mine"), Timestamp::ZERO).await.unwrap();
        assert!(elsewhere.caller(secret.reveal(), Timestamp::ZERO).await.is_ok());
        here.revoke(&record.id, Timestamp::ZERO).await.unwrap();
        assert!(matches!(here.caller(secret.reveal(), Timestamp::ZERO).await, Err(KeyError::Unknown)));
        let later = Timestamp::from_millis(1000);
        assert!(matches!(elsewhere.caller(secret.reveal(), later).await, Err(KeyError::Unknown)));
    }

    #[tokio::test]
    async fn a_chosen_key_is_taken_once_and_only_if_it_can_be_sent() {
        let keys = keys(DemoKey::On);
        let record = keys.adopt(live("mine"), "correct-horse", Timestamp::ZERO).await.unwrap();
        assert_eq!(keys.caller("correct-horse", Timestamp::ZERO).await.unwrap(), Caller::Key(record.id));
        assert_eq!(record.hint, "…orse");
        let again = keys.adopt(live("other"), "correct-horse", Timestamp::ZERO).await;
        assert!(matches!(again, Err(KeyError::Store(_))));
        for bad in ["short", "with a space", "ümläute!", DEMO_KEY] {
            let refused = keys.adopt(live("mine"), bad, Timestamp::ZERO).await;
            assert!(matches!(refused, Err(KeyError::BadSecret)), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn the_demo_key_can_be_switched_off() {
        assert_eq!(keys(DemoKey::On).caller(DEMO_KEY, Timestamp::ZERO).await.unwrap(), Caller::Demo);
        let off = keys(DemoKey::Off);
        assert!(matches!(off.caller(DEMO_KEY, Timestamp::ZERO).await, Err(KeyError::Unknown)));
    }

    #[tokio::test]
    async fn neither_debug_nor_the_list_shows_a_key() {
        let keys = keys(DemoKey::On);
        let (record, secret) = keys.create(live("mine"), Timestamp::ZERO).await.unwrap();
        let body = &secret.reveal()[KeyKind::Live.prefix().len()..];
        let shown = format!("{secret:?} {record:?} {:?} {keys:?}", keys.list().await.unwrap());
        assert!(!shown.contains(&body[..8]));
        assert!(record.hint.ends_with(&body[60..]));
    }

    #[tokio::test]
    async fn a_name_that_a_list_cannot_show_is_refused() {
        for name in ["", "a\nb", &"x".repeat(KEY_NAME_CHARS_MAX + 1)] {
            let refused = keys(DemoKey::On).create(live(name), Timestamp::ZERO).await;
            assert!(matches!(refused, Err(KeyError::BadName)), "{name:?}");
        }
    }
}
