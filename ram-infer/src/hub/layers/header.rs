//! The header of a safetensors file: read of a stranger's file, and written for a file with some of its tensors.

use std::ops::Range;

use ram_core::units::Bytes;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::hub::HubError;

/// Bytes in front of the header, which say how long it is.
pub(super) const LENGTH_BYTES: u64 = 8;
/// Longest header that is read: the largest models name some 100,000 tensors a file at 150 bytes each.
pub(super) const HEADER_BYTES_MAX: u64 = 64 << 20;
/// The data begins at a multiple of this.
const ALIGNMENT: usize = 8;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Where its bytes lie in the file.
    pub(super) bytes: Range<u64>,
}

/// The length of a header, by the first [`LENGTH_BYTES`] of a file of this size.
///
/// # Errors
/// [`HubError::BadHeader`] when it cannot be.
pub(super) fn length(file: &str, first: &[u8], size: Bytes) -> Result<u64, HubError> {
    let bad = |problem: String| HubError::BadHeader { file: file.to_owned(), problem };
    let first: [u8; 8] = first.try_into().map_err(|_| bad("it has no length".to_owned()))?;
    let length = u64::from_le_bytes(first);
    if length > HEADER_BYTES_MAX {
        return Err(bad(format!("{length} bytes of header are over the limit of {HEADER_BYTES_MAX}")));
    }
    if length > size.get().saturating_sub(LENGTH_BYTES) {
        return Err(bad(format!("a header of {length} bytes does not fit into the file")));
    }
    Ok(length)
}

/// A header, checked: its tensors lie one behind the other, each as long as its shape says, and fill the file.
#[derive(Debug)]
pub(super) struct Header {
    metadata: Metadata,
    /// Where the data begins in the file.
    start: u64,
}

impl Header {
    /// Reads a header, without its length, of a file of this size.
    ///
    /// # Errors
    /// [`HubError::BadHeader`].
    pub(super) fn parse(file: &str, json: &[u8], size: Bytes) -> Result<Self, HubError> {
        let bad = |problem: String| HubError::BadHeader { file: file.to_owned(), problem };
        let metadata: Metadata = serde_json::from_slice(json).map_err(|error| bad(error.to_string()))?;
        let start = LENGTH_BYTES + json.len() as u64;
        let end = start.checked_add(metadata.data_len() as u64);
        if end != Some(size.get()) {
            return Err(bad("its tensors do not fill the file".to_owned()));
        }
        Ok(Self { metadata, start })
    }

    /// Names of all tensors, in the order of their bytes.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// The tensors that are wanted, in the order of their bytes, and the beginning of a file that holds just them: the
    /// length of its header, and the header.
    ///
    /// # Errors
    /// [`HubError::BadHeader`] when the tensors of this file cannot stand without the others.
    pub(super) fn select(
        &self,
        file: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(Vec<Tensor>, Vec<u8>), HubError> {
        let bad = |problem: String| HubError::BadHeader { file: file.to_owned(), problem };
        let (mut tensors, mut infos, mut at) = (Vec::new(), Vec::new(), 0);
        for name in self.names().into_iter().filter(|name| wanted(name)) {
            let Some(info) = self.metadata.info(&name) else { continue };
            let (begin, end) = info.data_offsets;
            let bytes = self.start + begin as u64..self.start + end as u64;
            let data_offsets = (at, at + (end - begin));
            at = data_offsets.1;
            infos.push((name.clone(), TensorInfo { data_offsets, ..info.clone() }));
            tensors.push(Tensor { name, bytes });
        }
        let kept = Metadata::new(self.metadata.metadata().clone(), infos).map_err(|e| bad(e.to_string()))?;
        let mut json = serde_json::to_vec(&kept).map_err(|error| bad(error.to_string()))?;
        json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
        let mut head = (json.len() as u64).to_le_bytes().to_vec();
        head.append(&mut json);
        Ok((tensors, head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    const JSON: &str = r#"{"__metadata__":{"format":"mlx"},"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},
        "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"c":{"dtype":"BF16","shape":[2],"data_offsets":[7,11]}}"#;

    fn size() -> Bytes {
        Bytes::new(LENGTH_BYTES + JSON.len() as u64 + 11)
    }

    #[test]
    fn a_file_of_some_tensors_reads_as_a_file_of_its_own() {
        let header = Header::parse("f", JSON.as_bytes(), size()).unwrap();
        assert_eq!(header.names(), ["a", "b", "c"]);
        let (tensors, mut file) = header.select("f", |name| name != "b").unwrap();
        let start = LENGTH_BYTES + JSON.len() as u64;
        let ranges: Vec<_> = tensors.iter().map(|tensor| tensor.bytes.clone()).collect();
        assert_eq!(ranges, [start..start + 4, start + 7..start + 11]);
        assert_eq!(file.len() % ALIGNMENT, 0);
        file.extend([0, 1, 2, 3, 7, 8, 9, 10]);
        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("c").unwrap().data(), [7, 8, 9, 10]);
        assert_eq!(read.names().len(), 2);
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let bad = |json: &str, size: u64| {
            let error = Header::parse("f", json.as_bytes(), Bytes::new(size)).unwrap_err();
            assert!(matches!(error, HubError::BadHeader { .. }), "{error}");
        };
        bad(JSON, size().get() + 1);
        bad("{", 9);
        let one = |entry: &str| format!(r#"{{"a":{entry}}}"#);
        for entry in [
            r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#,
            r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#,
            r#"{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F7","shape":[1],"data_offsets":[0,4]}"#,
        ] {
            bad(&one(entry), LENGTH_BYTES + one(entry).len() as u64 + 4);
        }
        let length = |first: u64, size: u64| length("f", &first.to_le_bytes(), Bytes::new(size)).ok();
        assert_eq!(length(10, 18), Some(10));
        assert_eq!(length(11, 18), None);
        assert_eq!(length(u64::MAX, u64::MAX), None);
        assert_eq!(length(0, 3), Some(0));
    }
}
