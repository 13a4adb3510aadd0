//! The tensors of a model's folder: one safetensors file or several with an index, mapped into memory.
//!
//! 0        8            8+N
//! | N: u64 | JSON of N  | tensors, end to end |     little-endian
//!
//! Nothing is copied when a folder is opened: a tensor is a [`Span`] of its file, and its pages are read when they are
//! first used. Every length that a header claims is held against
//! the file's size before it is believed.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Component, Path};
use std::sync::Arc;

use memmap2::Mmap;
use ram_core::units::Bytes;
use safetensors::tensor::{Dtype, Metadata};

use crate::error::InferError;
use crate::folder;

/// The tensors of a folder, by name; and which of them a model has taken.
pub(crate) struct Weights {
    tensors: HashMap<String, Stored>,
    taken: RefCell<HashSet<String>>,
}

/// One tensor, where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Span,
}

/// A run of bytes of a mapped file, which it keeps mapped.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Deref for Span {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // `Shard::open` made sure that the range lies in the map.
        &self.map[self.range.clone()]
    }
}

impl Span {
    /// Says that these bytes have been read for the last time: their pages need not stay in memory.
    pub(crate) fn forget(&self) {
        #[cfg(unix)]
        {
            #[expect(unsafe_code, reason = "only this mapping knows that its pages can be read again")]
            // SAFETY: the mapping is of a file and read-only, so a page that is dropped is read from the file anew.
            let forgotten = unsafe {
                let (start, length) = (self.range.start, self.range.len());
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length)
            };
            let _ = forgotten; // A system that keeps them is as right.
        }
    }
}

impl Weights {
    /// Opens `model.safetensors`, or else the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`InferError::MissingFile`], [`InferError::Truncated`], [`InferError::HeaderTooLong`],
    /// [`InferError::MalformedHeader`], [`InferError::ShardOutside`], [`InferError::DuplicateTensor`],
    /// [`InferError::MissingTensor`] when the index names one that its shard lacks, and those of reading the index.
    pub(crate) fn open(dir: &Path) -> Result<Self, InferError> {
        let tensors = match folder::open(dir, SINGLE)? {
            Some((opened, _)) => read_shard(SINGLE, &opened)?,
            None => match folder::read_json(dir, INDEX, INDEX_BYTES_MAX)? {
                Some(index) => read_shards(dir, &weight_map(&index)?)?,
                None => return Err(InferError::MissingFile { file: SINGLE.to_owned() }),
            },
        };
        Ok(Self { tensors, taken: RefCell::default() })
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name, which counts as taken from now on.
    ///
    /// # Errors
    /// [`InferError::MissingTensor`].
    pub(crate) fn take(&self, name: &str) -> Result<&Stored, InferError> {
        let found = self.tensors.get(name);
        let found = found.ok_or_else(|| InferError::MissingTensor { tensor: name.to_owned() })?;
        self.taken.borrow_mut().insert(name.to_owned());
        Ok(found)
    }

    /// The tensor of this name, which must have this shape.
    ///
    /// # Errors
    /// [`InferError::MissingTensor`] and [`InferError::TensorShape`].
    pub(crate) fn take_shaped(&self, name: &str, shape: &[usize]) -> Result<&Stored, InferError> {
        let found = self.take(name)?;
        if found.shape != shape {
            let (tensor, actual) = (name.to_owned(), found.shape.clone());
            return Err(InferError::TensorShape { tensor, expected: shape.to_vec(), actual });
        }
        Ok(found)
    }

    /// The bytes of all tensors taken.
    pub(crate) fn taken_bytes(&self) -> Bytes {
        let taken = self.taken.borrow();
        let lengths = taken.iter().filter_map(|name| self.tensors.get(name)).map(|found| found.bytes.len());
        Bytes::new(lengths.map(|length| length as u64).sum())
    }

    /// Refuses the folder when it holds a tensor that was not taken and that `ignored` does not know: a bias that
    /// nobody adds, say, is the sign of another architecture.
    ///
    /// # Errors
    /// [`InferError::UnusedTensor`], with the first such name.
    pub(crate) fn check_all_taken(&self, ignored: impl Fn(&str) -> bool) -> Result<(), InferError> {
        let taken = self.taken.borrow();
        let unused = self.tensors.keys().filter(|name| !taken.contains(*name) && !ignored(name));
        match unused.min() {
            Some(tensor) => Err(InferError::UnusedTensor { tensor: tensor.clone() }),
            None => Ok(()),
        }
    }
}

/// The index: which tensor lies in which shard.
fn weight_map(index: &serde_json::Value) -> Result<HashMap<&str, &str>, InferError> {
    let bad = |field: String| InferError::BadField {
        file: INDEX.to_owned(),
        field,
        value: "something else".to_owned(),
        expected: "the name of a shard for the name of each tensor".to_owned(),
    };
    let map = index
        .get("weight_map")
        .ok_or_else(|| InferError::MissingField { file: INDEX.to_owned(), field: "weight_map".to_owned() })?;
    let map = map.as_object().ok_or_else(|| bad("weight_map".to_owned()))?;
    let entry = |(tensor, shard): (&'_ String, &'_ serde_json::Value)| match shard.as_str() {
        Some(_) => Ok(()),
        None => Err(bad(format!("weight_map.{tensor}"))),
    };
    map.iter().try_for_each(entry)?;
    Ok(map.iter().filter_map(|(tensor, shard)| Some((tensor.as_str(), shard.as_str()?))).collect())
}

/// Opens all shards of an index and checks that each tensor is where the index says, once.
fn read_shards(dir: &Path, index: &HashMap<&str, &str>) -> Result<HashMap<String, Stored>, InferError> {
    let shards: BTreeSet<&str> = index.values().copied().collect();
    let mut tensors = HashMap::new();
    for shard in shards {
        if !is_plain_file_name(shard) {
            return Err(InferError::ShardOutside { shard: shard.chars().take(SHOWN_CHARS_MAX).collect() });
        }
        let (opened, _) = folder::required(folder::open(dir, shard)?, shard)?;
        let found = read_shard(shard, &opened)?;
        let expected = index.iter().filter(|(_, named)| **named == shard);
        if let Some((tensor, _)) = expected.into_iter().find(|(tensor, _)| !found.contains_key(**tensor)) {
            return Err(InferError::MissingTensor { tensor: (*tensor).to_owned() });
        }
        for (tensor, stored) in found {
            if tensors.contains_key(&tensor) {
                return Err(InferError::DuplicateTensor { tensor });
            }
            tensors.insert(tensor, stored);
        }
    }
    Ok(tensors)
}

/// Whether a name stays in the folder: one part, no `..`, no drive, of the kind that is expected.
fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one_part = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    one_part && name.ends_with(".safetensors") && !name.contains(['/', '\\', ':', '\0'])
}

/// Maps one file and reads its header.
fn read_shard(file: &str, opened: &File) -> Result<HashMap<String, Stored>, InferError> {
    let map = Arc::new(
        map(opened).map_err(|error| InferError::Unreadable { file: file.to_owned(), kind: error.kind() })?,
    );
    let (metadata, start) = read_header(file, &map)?;
    let stored = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        let bytes = Span { map: Arc::clone(&map), range };
        (name, Stored { dtype: info.dtype, shape: info.shape.clone(), bytes })
    };
    Ok(metadata.tensors().into_iter().map(stored).collect())
}

/// The header, and where the tensors start. Every tensor lies inside of the file, end to end with the next.
fn read_header(file: &str, bytes: &[u8]) -> Result<(Metadata, usize), InferError> {
    let truncated = |claimed: u64| InferError::Truncated {
        file: file.to_owned(),
        claimed: Bytes::new(claimed),
        present: Bytes::new(bytes.len() as u64),
    };
    let malformed = |problem: String| InferError::MalformedHeader { file: file.to_owned(), problem };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return Err(truncated(8)) };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX.get() {
        let (claimed, limit) = (Bytes::new(length), HEADER_BYTES_MAX);
        return Err(InferError::HeaderTooLong { file: file.to_owned(), claimed, limit });
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let header = header.ok_or_else(|| truncated(8 + length))?;
    // Refuses holes, overlaps, and lengths that do not follow from shape and type.
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| malformed(error.to_string()))?;
    let start = 8 + header.len();
    match start.checked_add(metadata.data_len()) {
        Some(end) if end == bytes.len() => Ok((metadata, start)),
        Some(end) if end < bytes.len() => {
            Err(malformed(format!("{} bytes follow the last tensor", bytes.len() - end)))
        }
        Some(end) => Err(truncated(end as u64)),
        None => Err(malformed("its tensors end past the largest file".to_owned())),
    }
}

#[expect(unsafe_code, reason = "a mapping is the only way to use weights without a copy of them")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private to this module, which hands out `&[u8]` alone: any content is a
    // valid value. What remains is that somebody changes or cuts the file while it is mapped. Files of a model's
    // folder are written once and replaced by renaming (as the Hugging Face cache and every downloader does), which
    // leaves a mapped file as it was; `Model::load` states it as its condition.
    unsafe { Mmap::map(file) }
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The index of the largest model known (hundreds of experts, each named) has 15 MB.
const INDEX_BYTES_MAX: Bytes = Bytes::new(64 << 20);
/// The limit of the format's own library.
const HEADER_BYTES_MAX: Bytes = Bytes::new(100_000_000);
const SHOWN_CHARS_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header and `data` bytes behind it.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    }

    fn check(bytes: &[u8], expected: impl Fn(&InferError) -> bool) {
        let error = read_header("f", bytes).unwrap_err();
        assert!(expected(&error), "{error:?}");
    }

    #[test]
    fn a_header_is_believed_only_as_far_as_the_file_goes() {
        let good = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let (metadata, start) = read_header("f", &file(good, 8)).unwrap();
        assert_eq!((metadata.data_len(), start), (8, 8 + good.len()));
        check(&file(good, 7), |error| matches!(error, InferError::Truncated { .. }));
        check(&file(good, 9), |error| matches!(error, InferError::MalformedHeader { .. }));
        check(&file(good, 0)[..20], |error| matches!(error, InferError::Truncated { .. }));
        check(&[0; 7], |error| matches!(error, InferError::Truncated { .. }));
        check(&[], |error| matches!(error, InferError::Truncated { .. }));
        let huge = (1u64 << 60).to_le_bytes();
        check(
            &huge,
            |error| matches!(error, InferError::HeaderTooLong { claimed, .. } if claimed.get() == 1 << 60),
        );
    }

    #[test]
    fn tensors_that_overlap_or_overflow_are_refused() {
        let header = |offsets: [(u64, u64); 2], shape: u64| {
            let [a, b] = offsets.map(|(start, end)| {
                format!(r#"{{"dtype":"U8","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
            });
            format!(r#"{{"a":{a},"b":{b}}}"#)
        };
        let malformed = |error: &InferError| matches!(error, InferError::MalformedHeader { .. });
        check(&file(&header([(0, 4), (2, 6)], 4), 6), malformed);
        check(&file(&header([(0, 4), (6, 10)], 4), 10), malformed);
        check(&file(&header([(0, 4), (8, 4)], 4), 8), malformed);
        let half = 1 << 63;
        check(&file(&header([(0, half), (half, u64::MAX)], half), 0), malformed);
        let large = 1 << 60;
        check(&file(&header([(0, large), (large, 2 * large)], large), 0), |error| {
            matches!(error, InferError::Truncated { .. })
        });
    }

    #[test]
    fn a_shard_is_a_plain_file_name() {
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
        for bad in [
            "",
            ".",
            "..",
            "../a.safetensors",
            "a/b.safetensors",
            "/a.safetensors",
            "a\\b.safetensors",
            "c:a.safetensors",
            "./a.safetensors",
            "a.safetensors/",
            "config.json",
        ] {
            assert!(!is_plain_file_name(bad), "{bad:?}");
        }
    }
}
