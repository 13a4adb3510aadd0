//! Who a node is: an Ed25519 key that signs, and an X25519 key that others encrypt to.
//!
//! Both secrets are 32 random bytes in a file of their own, made on the first start:
//!
//! | file | secret |
//! |---|---|
//! | [`NODE_KEY_FILE`] | seed of the Ed25519 signing key (RFC 8032, section 5.1.5) |
//! | [`E2E_KEY_FILE`] | X25519 scalar before clamping (RFC 7748, section 5) |
//!
//! Start at [`NodeIdentity::open_or_create`].

use std::fmt;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::keys;
use crate::statement::Statement;

/// File of the Ed25519 seed, in the node's folder.
pub const NODE_KEY_FILE: &str = "node_key.bin";
/// File of the X25519 secret, in the node's folder.
pub const E2E_KEY_FILE: &str = "encryption_key.bin";

/// The two secrets of a node. Wiped when dropped; `Debug` shows the public fingerprint alone.
pub struct NodeIdentity {
    signing: SigningKey,
    e2e: StaticSecret,
}

impl NodeIdentity {
    /// Opens the identity in `dir`, making the folder (0700) and whatever key is missing (0600).
    ///
    /// A key appears under its name whole or not at all, and is never replaced: when several processes start in an
    /// empty folder at once, all of them leave with the same identity.
    ///
    /// # Errors
    /// [`IdentityError`]: the folder or a file cannot be used, is open to others, or does not hold a key.
    pub fn open_or_create(dir: &Path) -> Result<Self, IdentityError> {
        keys::prepare_dir(dir)?;
        let seed = keys::open_or_create(&dir.join(NODE_KEY_FILE))?;
        let secret = keys::open_or_create(&dir.join(E2E_KEY_FILE))?;
        Ok(Self::of(&seed, &secret))
    }

    /// The identity of two given secrets, for tests and vectors.
    #[must_use]
    pub fn from_seeds(signing: [u8; 32], e2e: [u8; 32]) -> Self {
        Self::of(&Zeroizing::new(signing), &Zeroizing::new(e2e))
    }

    /// The public Ed25519 key: the node's name on the network.
    #[must_use]
    pub fn node_public(&self) -> [u8; 32] {
        self.signing.verifying_key().to_bytes()
    }

    /// The seed of the node key, for the channels between nodes that prove it (TLS, iroh). It is wiped when dropped.
    #[must_use]
    pub fn node_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.signing.to_bytes())
    }

    /// The public X25519 key: what a client encrypts to.
    #[must_use]
    pub fn e2e_public(&self) -> [u8; 32] {
        PublicKey::from(&self.e2e).to_bytes()
    }

    /// The secret of the X25519 key: what opens the prompts that are sealed to it.
    #[cfg(feature = "seal")]
    pub(crate) const fn e2e_secret(&self) -> &StaticSecret {
        &self.e2e
    }

    /// What a person compares, instead of two keys of 64 digits.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.node_public(), &self.e2e_public())
    }

    /// Signs a statement with the node key (pure Ed25519, RFC 8032, section 5.1.6).
    ///
    /// The statement should name this identity's own keys: nobody accepts the signature otherwise.
    #[must_use]
    pub fn sign_statement(&self, statement: &Statement) -> [u8; 64] {
        self.signing.sign(&statement.to_bytes()).to_bytes()
    }

    fn of(seed: &Zeroizing<[u8; 32]>, secret: &Zeroizing<[u8; 32]>) -> Self {
        Self { signing: SigningKey::from_bytes(seed), e2e: StaticSecret::from(**secret) }
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeIdentity({})", self.fingerprint())
    }
}

/// The first 128 bits of SHA-256 over a domain, the node key and the end-to-end key.
///
/// Long enough that nobody finds a second pair of keys with the same fingerprint, short enough to be read out: eight
/// groups of four digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of a node's two public keys.
    #[must_use]
    pub fn of(node_key: &[u8; 32], e2e_key: &[u8; 32]) -> Self {
        let digest =
            Sha256::new().chain_update(FINGERPRINT_DOMAIN).chain_update(node_key).chain_update(e2e_key);
        let mut short = [0; 16];
        short.copy_from_slice(&digest.finalize()[..16]);
        Self(short)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (group, pair) in self.0.chunks_exact(2).enumerate() {
            let dash = if group == 0 { "" } else { "-" };
            write!(f, "{dash}{:02x}{:02x}", pair[0], pair[1])?;
        }
        Ok(())
    }
}

/// Why there is no identity. Every variant is for the node's operator; none is a peer's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file system refused.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operating system has no randomness to make a key from.
    #[error("the operating system gives no randomness to make a key from")]
    NoRandomness,
    /// A key file that its owner's group, or anybody, may read or write.
    #[error("{} is open to others (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A folder in which anybody may replace the keys.
    #[error("anybody may write to {}: run `chmod 700 {}`", path.display(), path.display())]
    WorldWritable {
        /// The folder.
        path: PathBuf,
    },
    /// A folder, pipe or device stands where a key file should.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// A file of another length than a key's.
    #[error("{} holds {found} bytes, a key 32: restore a backup, or move it away for a new key", path.display())]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
    },
    /// A file of zeros, as a failing disk leaves behind: anybody could guess that key.
    #[error("{} holds only zeros: restore a backup, or move it away for a new key", path.display())]
    Blank {
        /// The file.
        path: PathBuf,
    },
}

/// Keeps a fingerprint apart from every other hash of the same keys.
const FINGERPRINT_DOMAIN: &[u8] = b"ram-aggregator/fingerprint/v1\0";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::sync::Barrier;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let digits = hex.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).unwrap());
        let bytes: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    #[test]
    fn an_identity_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let made = NodeIdentity::open_or_create(&dir.path().join("a/b")).unwrap();
        let read = NodeIdentity::open_or_create(&dir.path().join("a/b")).unwrap();
        assert_eq!((made.node_public(), made.e2e_public()), (read.node_public(), read.e2e_public()));
        let other = NodeIdentity::open_or_create(&dir.path().join("other")).unwrap();
        assert_ne!(made.fingerprint(), other.fingerprint());
    }

    #[test]
    fn first_starts_at_once_agree_on_one_key_and_leave_nothing_behind() {
        const STARTS: usize = 16;
        for _ in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            let barrier = Barrier::new(STARTS);
            let start = || {
                barrier.wait();
                NodeIdentity::open_or_create(dir.path()).unwrap().fingerprint().to_string()
            };
            let seen: BTreeSet<String> = std::thread::scope(|scope| {
                let starts: Vec<_> = (0..STARTS).map(|_| scope.spawn(start)).collect();
                starts.into_iter().map(|start| start.join().unwrap()).collect()
            });
            assert_eq!(seen.len(), 1);
            let files: BTreeSet<_> =
                fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
            assert_eq!(files, BTreeSet::from([NODE_KEY_FILE.into(), E2E_KEY_FILE.into()]));
        }
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused_and_kept() {
        let check = |content: &[u8], expected: &str| {
            let dir = tempfile::tempdir().unwrap();
            let identity = NodeIdentity::open_or_create(dir.path()).unwrap();
            drop(identity);
            let file = dir.path().join(NODE_KEY_FILE);
            fs::write(&file, content).unwrap();
            let error = NodeIdentity::open_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(fs::read(&file).unwrap(), content);
        };
        check(b"", "holds 0 bytes");
        check(&[7; 31], "holds 31 bytes");
        check(&[7; 33], "holds 33 bytes");
        check(&[0; 32], "only zeros");
    }

    #[test]
    fn a_folder_in_the_place_of_a_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(E2E_KEY_FILE)).unwrap();
        let error = NodeIdentity::open_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = NodeIdentity::open_or_create(file.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Io { .. }), "{error}");
    }

    #[cfg(unix)]
    mod on_unix {
        use super::*;
        use std::os::unix::fs::PermissionsExt;

        fn mode(path: &Path) -> u32 {
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        }

        fn set_mode(path: &Path, mode: u32) {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }

        #[test]
        fn keys_are_for_their_owner_alone() {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("node");
            drop(NodeIdentity::open_or_create(&dir).unwrap());
            assert_eq!(mode(&dir), 0o700);
            assert_eq!(mode(&dir.join(NODE_KEY_FILE)), 0o600);
            assert_eq!(mode(&dir.join(E2E_KEY_FILE)), 0o600);
        }

        #[test]
        fn a_key_that_others_may_open_is_refused_with_the_cure() {
            for exposed in [0o640, 0o604, 0o620, 0o602, 0o777] {
                let dir = tempfile::tempdir().unwrap();
                drop(NodeIdentity::open_or_create(dir.path()).unwrap());
                let file = dir.path().join(E2E_KEY_FILE);
                set_mode(&file, exposed);
                let error = NodeIdentity::open_or_create(dir.path()).unwrap_err().to_string();
                assert!(error.contains(&format!("mode {exposed:03o}")), "{error}");
                assert!(error.contains(&format!("`chmod 600 {}`", file.display())), "{error}");
                set_mode(&file, 0o400);
                assert!(NodeIdentity::open_or_create(dir.path()).is_ok(), "read-only is fine");
            }
        }

        #[test]
        fn a_folder_that_anybody_may_write_is_refused_with_the_cure() {
            let dir = tempfile::tempdir().unwrap();
            set_mode(dir.path(), 0o757);
            let error = NodeIdentity::open_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains("chmod 700"), "{error}");
        }

        #[test]
        fn a_link_to_nowhere_is_an_error_and_no_new_key() {
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink("nowhere", dir.path().join(NODE_KEY_FILE)).unwrap();
            let error = NodeIdentity::open_or_create(dir.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Io { .. }), "{error}");
            assert!(!dir.path().join("nowhere").exists());
        }
    }

    #[test]
    fn the_seed_is_that_of_the_node_key() {
        let identity = NodeIdentity::from_seeds([0x11; 32], [0x22; 32]);
        assert_eq!(*identity.node_seed(), [0x11; 32]);
        let again = NodeIdentity::from_seeds(*identity.node_seed(), [0x33; 32]);
        assert_eq!(again.node_public(), identity.node_public());
    }

    #[test]
    fn debug_shows_the_fingerprint_alone() {
        let identity = NodeIdentity::from_seeds([0x11; 32], [0x22; 32]);
        assert_eq!(format!("{identity:?}"), format!("NodeIdentity({})", identity.fingerprint()));
        assert_eq!(identity.fingerprint().to_string().len(), 8 * 4 + 7);
    }

    #[test]
    fn signing_agrees_with_rfc_8032() {
        // Section 7.1, tests 1 to 3: seed, public key, message, signature.
        let check = |seed: &str, public: &str, message: &[u8], signature: &str| {
            let identity = NodeIdentity::from_seeds(bytes(seed), [1; 32]);
            assert_eq!(identity.node_public(), bytes(public));
            assert_eq!(identity.signing.sign(message).to_bytes(), bytes(signature));
        };
        check(
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            b"",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155\
             5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        );
        check(
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            &[0x72],
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        check(
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            &[0xaf, 0x82],
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        );
    }

    #[test]
    fn key_agreement_agrees_with_rfc_7748() {
        // Section 6.1: Alice, Bob, and what they share.
        let alice = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
        let bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
        let alice = NodeIdentity::from_seeds([1; 32], bytes(alice));
        let bob = NodeIdentity::from_seeds([1; 32], bytes(bob));
        let alice_public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        assert_eq!(alice.e2e_public(), bytes(alice_public));
        let bob_public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
        assert_eq!(bob.e2e_public(), bytes(bob_public));
        let shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
        let ours = alice.e2e.diffie_hellman(&PublicKey::from(bob.e2e_public()));
        assert_eq!(ours.to_bytes(), bytes(shared));
        // Section 5.2, first vector.
        let scalar = "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4";
        let point = "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c";
        let product = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552";
        assert_eq!(x25519_dalek::x25519(bytes(scalar), bytes(point)), bytes(product));
    }
}
