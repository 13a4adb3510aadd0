//! Some tensors of one file, fetched by ranges into a file of their own.
//!
//! ```text
//! NAME.incomplete   the new header, then the tensors that have come, one behind the other
//! NAME.sums         of each tensor that is there to its end: its SHA-256
//! ```
//!
//! After a cut the tensors that are there to their end are hashed again and kept; the fetch goes on behind the last one
//! that is right. Within one run it goes on at the very byte.
//!
//! Neighbours give all of the file, of which the tensors are kept: in NAME.near, until all of it has come and has the
//! hash that the hub named. What has not is thrown away, and the hub is asked.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ram_core::id::ModelId;
use ram_core::units::Bytes;
use sha2::{Digest, Sha256};

use super::header::Tensor;
use super::manifest::{PartSums, hash_of};
use crate::hub::blob::{PIECE_BYTES, Tries, Watch, hex, pause};
use crate::hub::http::{Http, Wanted, broken};
use crate::hub::near::{Asking, Near};
use crate::hub::{HubError, Patience, PlannedFile};

/// What lies between two tensors is fetched and thrown away when it is shorter than another request costs: some 5 ms
/// of a fast line.
const GAP_BYTES_MAX: u64 = 256 << 10;

/// How the names of the two files end while a hub gives the tensors, and while a neighbour does.
const INCOMPLETE: [&str; 2] = ["incomplete", "sums"];
const NEAR: [&str; 2] = ["near", "near-sums"];

/// Some tensors of one file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    /// The hub's file.
    pub(super) file: PlannedFile,
    /// The tensors, in the order of their bytes.
    pub(super) tensors: Vec<Tensor>,
    /// What stands before the data in the new file.
    pub(super) head: Vec<u8>,
    /// What is asked for: ranges of the hub's file, in order.
    pub(super) runs: Vec<Range<u64>>,
}

impl Part {
    pub(super) fn new(file: PlannedFile, tensors: Vec<Tensor>, head: Vec<u8>) -> Self {
        let runs = runs(&tensors);
        Self { file, tensors, head, runs }
    }

    /// The bytes to fetch.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes::new(self.runs.iter().map(|run| run.end - run.start).sum())
    }

    /// The size of the new file.
    pub(super) fn size(&self) -> Bytes {
        let data: u64 = self.tensors.iter().map(|tensor| tensor.bytes.end - tensor.bytes.start).sum();
        Bytes::new(self.head.len() as u64 + data)
    }

    /// The bytes of all runs before this place of the hub's file.
    fn before(&self, place: u64) -> Bytes {
        let before = |run: &Range<u64>| place.clamp(run.start, run.end) - run.start;
        Bytes::new(self.runs.iter().map(before).sum())
    }
}

/// The ranges that hold these tensors, short gaps with them.
fn runs(tensors: &[Tensor]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for bytes in tensors.iter().map(|tensor| &tensor.bytes).filter(|bytes| !bytes.is_empty()) {
        match runs.last_mut() {
            Some(last) if bytes.start - last.end <= GAP_BYTES_MAX => last.end = bytes.end,
            _ => runs.push(bytes.clone()),
        }
    }
    runs
}

/// A part to fetch.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartOrder<'a> {
    pub(super) http: &'a Http,
    pub(super) model: &'a ModelId,
    pub(super) commit: &'a str,
    pub(super) part: &'a Part,
    pub(super) dir: &'a Path,
    pub(super) patience: Patience,
    pub(super) near: Option<&'a dyn Near>,
}

impl PartOrder<'_> {
    /// Fetches the part, and answers the hashes of what came.
    ///
    /// # Errors
    /// [`HubError`]. What has come is kept for the next time.
    pub(super) fn run(self, watch: &mut impl Watch) -> Result<PartSums, HubError> {
        let mut writing = Writing::open(self.dir, self.part, watch)?;
        if writing.has_nothing()
            && let Some(sums) = self.ask_near(watch)?
        {
            writing.remove()?;
            return Ok(sums);
        }
        let mut tries = Tries::new(self.patience);
        watch.at(self.part.before(writing.place()));
        while !writing.is_whole() {
            let begun = writing.place();
            match self.go_on(&mut writing, watch) {
                Err(error) if error.is_transient() => {
                    if writing.place() > begun {
                        tries = Tries::new(self.patience);
                    }
                    let Some(wait) = tries.wait_after(&error) else { return Err(error) };
                    watch.setback(error);
                    pause(wait, || watch.is_over())?;
                }
                other => other?,
            }
        }
        watch.at(self.part.bytes());
        writing.finish()
    }

    /// Has neighbours give the whole file, and keeps the part of it; `None` when they do not, or not this file.
    fn ask_near(self, watch: &mut impl Watch) -> Result<Option<PartSums>, HubError> {
        let Some(asking) = Asking::new(self.near, &self.part.file) else { return Ok(None) };
        let mut writing = Writing::anew(self.dir, self.part, NEAR)?;
        let (mut hash, mut place) = (Sha256::new(), 0);
        let read = asking.read(Bytes::ZERO, watch, |bytes, watch| {
            hash.update(bytes);
            writing.take(place, bytes)?;
            place += bytes.len() as u64;
            watch.at(self.part.before(place));
            Ok(())
        });
        let is_all = read.as_ref().is_ok_and(|end| *end == self.part.file.size);
        if is_all && hex(&hash.finalize()) == self.part.file.content.etag {
            return writing.finish().map(Some);
        }
        writing.remove()?;
        if is_all {
            asking.blame();
        }
        read.map(|_| None)
    }

    /// Asks for the rest of the run that the next byte lies in, and writes what comes of it.
    fn go_on(self, writing: &mut Writing<'_>, watch: &mut impl Watch) -> Result<(), HubError> {
        let mut place = writing.place();
        let Some(end) = self.part.runs.iter().find(|run| run.contains(&place)).map(|run| run.end) else {
            return writing.take(place, &[]); // only tensors without a byte are left
        };
        let wanted = Wanted { model: self.model, file: Some(&self.part.file.name) };
        let answer = self.http.span(wanted, self.commit, place..end, self.part.file.size)?;
        let host = answer.host.clone();
        let mut body = answer.body().take(end - place);
        let mut piece = vec![0; PIECE_BYTES];
        while place < end {
            if watch.is_over() {
                return Err(HubError::Cancelled);
            }
            let length = match body.read(&mut piece).map_err(|error| broken(&host, error))? {
                0 => return Err(broken(&host, "it ended amid a file")),
                length => length,
            };
            writing.take(place, &piece[..length])?;
            place += length as u64;
            watch.at(self.part.before(place));
        }
        Ok(())
    }
}

/// A file that is being written.
struct Writing<'a> {
    part: &'a Part,
    dir: &'a Path,
    path: PathBuf,
    file: File,
    sums_path: PathBuf,
    sums_file: File,
    /// Of the tensors that are there to their end.
    sums: Vec<String>,
    /// Of the tensor behind them: how much has come, and its hash so far.
    come: u64,
    hash: Sha256,
}

impl<'a> Writing<'a> {
    /// Opens what came before, and keeps what of it is right.
    fn open(dir: &'a Path, part: &'a Part, watch: &impl Watch) -> Result<Self, HubError> {
        let mut writing = Self::at(dir, part, INCOMPLETE)?;
        writing.recall(watch)?;
        writing.cut_back()?;
        Ok(writing)
    }

    /// Begins anew, whatever came before.
    fn anew(dir: &'a Path, part: &'a Part, endings: [&str; 2]) -> Result<Self, HubError> {
        let mut writing = Self::at(dir, part, endings)?;
        writing.cut_back()?;
        Ok(writing)
    }

    /// Opens the two files with these endings, and reads nothing.
    fn at(dir: &'a Path, part: &'a Part, endings: [&str; 2]) -> Result<Self, HubError> {
        let [path, sums_path] = endings.map(|ending| dir.join(format!("{}.{ending}", part.file.name)));
        let open = |path: &Path| {
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            opened.map_err(HubError::disk(path))
        };
        let (file, sums_file) = (open(&path)?, open(&sums_path)?);
        let (sums, come, hash) = (Vec::new(), 0, Sha256::new());
        Ok(Self { part, dir, path, file, sums_path, sums_file, sums, come, hash })
    }

    /// Reads what came before, up to the first tensor that is not right.
    fn recall(&mut self, watch: &impl Watch) -> Result<(), HubError> {
        let Self { part, file, sums_file, sums, .. } = self;
        let mut head = Vec::new();
        let read = (&mut *file).take(part.head.len() as u64).read_to_end(&mut head);
        if read.is_err() || head != part.head {
            return Ok(());
        }
        let lines = BufReader::new(sums_file).lines().map_while(Result::ok);
        // The first says of which content the tensors are.
        let mut told = lines.skip_while(|line| *line != part.file.content.etag).skip(1);
        for tensor in &part.tensors {
            if watch.is_over() {
                return Err(HubError::Cancelled);
            }
            let Some(sum) = told.next() else { break };
            let length = tensor.bytes.end - tensor.bytes.start;
            if hash_of(file, length).is_none_or(|found| found != sum) {
                break;
            }
            sums.push(sum);
        }
        Ok(())
    }

    /// Cuts both files to what is right, and stands at their ends.
    fn cut_back(&mut self) -> Result<(), HubError> {
        let kept = self.part.tensors.iter().take(self.sums.len());
        let data: u64 = kept.map(|tensor| tensor.bytes.end - tensor.bytes.start).sum();
        let length = self.part.head.len() as u64 + data;
        let head = &self.part.head;
        let cut = |file: &mut File| {
            if file.metadata()?.len() < length {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(head)?;
            }
            file.rewind()?;
            file.write_all(head)?;
            file.set_len(length)?;
            file.seek(SeekFrom::Start(length)).map(drop)
        };
        cut(&mut self.file).map_err(HubError::disk(&self.path))?;
        let mut lines = self.part.file.content.etag.clone() + "\n";
        self.sums.iter().for_each(|sum| lines.extend([sum, "\n"]));
        let file = &mut self.sums_file;
        let written =
            file.rewind().and_then(|()| file.set_len(0)).and_then(|()| file.write_all(lines.as_bytes()));
        written.map_err(HubError::disk(&self.sums_path))
    }

    fn has_nothing(&self) -> bool {
        self.sums.is_empty() && self.come == 0
    }

    fn is_whole(&self) -> bool {
        self.sums.len() == self.part.tensors.len()
    }

    /// Where in the hub's file the next byte lies that is wanted.
    fn place(&self) -> u64 {
        match self.part.tensors.get(self.sums.len()) {
            Some(tensor) => tensor.bytes.start + self.come,
            None => self.part.runs.last().map_or(0, |run| run.end),
        }
    }

    /// Writes of what lies at `place` in the hub's file what is wanted.
    fn take(&mut self, place: u64, bytes: &[u8]) -> Result<(), HubError> {
        let end = place + bytes.len() as u64;
        while let Some(tensor) = self.part.tensors.get(self.sums.len()) {
            let from = tensor.bytes.start + self.come;
            let until = tensor.bytes.end.min(end);
            if from < until {
                let offset = |at: u64| usize::try_from(at - place).unwrap_or(bytes.len());
                let wanted = &bytes[offset(from)..offset(until)];
                self.file.write_all(wanted).map_err(HubError::disk(&self.path))?;
                self.hash.update(wanted);
                self.come += wanted.len() as u64;
            }
            if tensor.bytes.start + self.come < tensor.bytes.end {
                break;
            }
            let sum = hex(&std::mem::take(&mut self.hash).finalize());
            let noted = writeln!(self.sums_file, "{sum}");
            noted.map_err(HubError::disk(&self.sums_path))?;
            self.sums.push(sum);
            self.come = 0;
        }
        Ok(())
    }

    /// Removes what came.
    fn remove(self) -> Result<(), HubError> {
        let gone = |path: &Path| fs::remove_file(path).map_err(HubError::disk(path));
        gone(&self.path)?;
        gone(&self.sums_path)
    }

    /// Puts the file in its place.
    fn finish(self) -> Result<PartSums, HubError> {
        let Self { part, dir, path, file, sums_path, sums, .. } = self;
        file.sync_all().map_err(HubError::disk(&path))?;
        let target = dir.join(&part.file.name);
        fs::rename(&path, &target).map_err(HubError::disk(&target))?;
        fs::remove_file(&sums_path).map_err(HubError::disk(&sums_path))?;
        let lengths = part.tensors.iter().map(|tensor| (&tensor.name, tensor.bytes.end - tensor.bytes.start));
        let tensors = lengths.zip(sums).map(|((name, length), sum)| (name.clone(), length, sum)).collect();
        let head = (part.head.len() as u64, hex(&Sha256::digest(&part.head)));
        Ok(PartSums { source: part.file.content.etag.clone(), head, tensors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(ranges: &[Range<u64>]) -> Vec<Tensor> {
        ranges.iter().map(|bytes| Tensor { name: String::new(), bytes: bytes.clone() }).collect()
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one run of bytes")]
    fn tensors_side_by_side_are_one_request_and_a_long_gap_makes_two() {
        let gap = GAP_BYTES_MAX;
        let check = |ranges: &[Range<u64>], expected: &[Range<u64>]| {
            assert_eq!(runs(&tensors(ranges)), expected);
        };
        check(&[], &[]);
        check(&[8..10, 10..20], &[8..20]);
        check(&[8..10, 10 + gap..20 + gap], &[8..20 + gap]);
        check(&[8..10, 11 + gap..20 + gap], &[8..10, 11 + gap..20 + gap]);
        check(&[8..10, 10..10, 500_000..500_000, 600_000..600_001], &[8..10, 600_000..600_001]);
    }
}
