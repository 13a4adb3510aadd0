//! Keys and values of all sequences, in blocks that sequences share and give back.
//!
//! A [block](BlockId) holds [`BLOCK_TOKENS`] positions of one sequence for every layer and head. Neighbours share a
//! *slab*, a run of memory that is made when the first of its blocks is written, and that huge pages back: a step of a
//! long sequence reads two pages of 4 KiB in each block, layer and head. Within a block, layer by layer and head by
//! head:
//!
//! ```text
//! | keys, (D, 32): a row for each number of a head | values, (32, D): a row for each position |
//! ```
//!
//! Keys lie across, so that 32 scores are computed side by side. Numbers are f32, bf16 (the default), or 8 bits with a
//! scale for each position. Layers that keep a state instead of positions have it in a sequence's *slot*.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use bytemuck::cast_slice_mut;
use ram_core::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::batch::{BLOCK_TOKENS, BlockId, Part};
use crate::error::InferError;
use crate::gpu::DeviceKv;
use crate::kernel::{Floats, Memory, from_bf16, to_bf16};
use crate::pool::Scattered;
use crate::simd::{self, Kernel, MultiplyAdd};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// In 32 bits, as they are computed.
    F32,
    /// Rounded to bf16.
    #[default]
    Bf16,
    /// Rounded to 8 bits, with a scale of 32 bits for each head and position.
    Int8,
}

/// Why a word is no [`KvDtype`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("keys and values are kept as bf16, int8 or f32")]
pub struct KvDtypeError;

impl FromStr for KvDtype {
    type Err = KvDtypeError;

    fn from_str(word: &str) -> Result<Self, KvDtypeError> {
        match word {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(KvDtypeError),
        }
    }
}

/// What one layer keeps of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerKv {
    /// Keys of `keys` and values of `values` numbers for each of `heads` heads and each position.
    Positions { heads: usize, keys: usize, values: usize },
    /// One state of so many numbers.
    State { floats: usize },
}

/// What a model's layers keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) layers: Vec<LayerKv>,
    pub(crate) dtype: KvDtype,
}

/// Keys, values and states of the sequences of one model.
///
/// Made by [`Model::new_kv`](crate::models::Model::new_kv), filled by its passes.
#[derive(Debug)]
pub struct KvPool(pub(crate) Kind);

/// Where they lie.
pub(crate) enum Kind {
    /// In memory, in blocks.
    Paged(PagedKv),
    /// On a device, one cache for each slot.
    Device(DeviceKv),
}

impl KvPool {
    /// Gives a block's memory back, once its neighbours' may go too. What it held is gone; it may be written anew.
    pub fn release(&mut self, block: BlockId) {
        if let Kind::Paged(paged) = &mut self.0 {
            paged.release(block);
        }
    }

    /// Memory of the blocks and states that are held now.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        match &self.0 {
            Kind::Paged(paged) => paged.bytes(),
            Kind::Device(device) => device.bytes(),
        }
    }
}

impl fmt::Debug for Kind {
    /// Nothing: what is kept is what was said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paged(_) => "Paged",
            Self::Device(_) => "Device",
        })
    }
}

/// Keys and values in blocks, and states by slot.
pub(crate) struct PagedKv {
    shape: KvShape,
    /// Where each layer's numbers start in a block, and all of them.
    starts: Vec<usize>,
    /// By the number of a block's slab; none where no block is held.
    slabs: Vec<Option<Slab>>,
    /// By slot and layer; empty until a sequence begins there.
    states: Vec<Vec<Box<[f32]>>>,
}

/// Neighbouring blocks.
struct Slab {
    /// Numbers of one block after those of another; of 8 bits, each block's scales follow its codes.
    memory: Memory,
    /// Whether each is held.
    held: Vec<bool>,
}

/// The blocks as the threads of a pass use them.
pub(crate) struct Blocks<'a> {
    shape: &'a KvShape,
    starts: &'a [usize],
    blocks: Vec<View<'a>>,
    states: Vec<Vec<Scattered<'a, f32>>>,
}

enum View<'a> {
    Absent,
    F32(Scattered<'a, f32>),
    Bf16(Scattered<'a, u16>),
    Int8 { codes: Scattered<'a, i8>, scales: Scattered<'a, f32> },
}

/// One head of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) layer: usize,
    pub(crate) head: usize,
}

impl KvShape {
    /// Numbers of a block, and where each layer's start.
    fn starts(&self) -> Vec<usize> {
        let numbers = |layer: &LayerKv| match *layer {
            LayerKv::Positions { heads, keys, values } => heads * (keys + values) * BLOCK_TOKENS,
            LayerKv::State { .. } => 0,
        };
        let ends = self.layers.iter().scan(0, |end, layer| {
            *end += numbers(layer);
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// Heads of all layers before `layer`.
    fn heads_before(&self, layer: usize) -> usize {
        let heads = |layer: &LayerKv| match layer {
            LayerKv::Positions { heads, .. } => *heads,
            LayerKv::State { .. } => 0,
        };
        self.layers[..layer].iter().map(heads).sum()
    }

    /// Scales of a block: for each head two, keys' and values', for each position.
    fn scales(&self) -> usize {
        2 * BLOCK_TOKENS * self.heads_before(self.layers.len())
    }

    /// Memory that a block takes.
    pub(crate) fn block_bytes(&self) -> Bytes {
        Bytes::new(self.block_len() as u64)
    }

    fn block_len(&self) -> usize {
        let numbers = self.starts().last().copied().unwrap_or(0);
        match self.dtype {
            KvDtype::F32 => 4 * numbers,
            KvDtype::Bf16 => 2 * numbers,
            KvDtype::Int8 => numbers + 4 * self.scales(),
        }
    }

    /// Memory that the states of one sequence take.
    pub(crate) fn state_bytes(&self) -> Bytes {
        let floats = |layer: &LayerKv| match layer {
            LayerKv::Positions { .. } => 0,
            LayerKv::State { floats } => *floats,
        };
        Bytes::new(4 * self.layers.iter().map(floats).sum::<usize>() as u64)
    }

    /// Whether some layer keeps a state, which cannot go back.
    pub(crate) fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer, LayerKv::State { .. }))
    }

    /// Blocks of a slab.
    fn slab_blocks(&self) -> usize {
        (SLAB_BYTES / self.block_len().max(1)).clamp(1, SLAB_BLOCKS_MAX)
    }
}

impl PagedKv {
    /// An empty pool with room for `slots` sequences' states.
    pub(crate) fn new(shape: KvShape, slots: usize) -> Self {
        let starts = shape.starts();
        let states = (0..slots).map(|_| Vec::new()).collect();
        Self { shape, starts, slabs: Vec::new(), states }
    }

    /// Lets a block go, and its slab with the last one.
    pub(crate) fn release(&mut self, block: BlockId) {
        let (number, place) = self.slab_of(block);
        if let Some(slab) = self.slabs.get_mut(number)
            && let Some(Slab { held, .. }) = slab
        {
            held[place] = false;
            if !held.contains(&true) {
                *slab = None;
            }
        }
    }

    /// The number of a block's slab, and its own number in there.
    fn slab_of(&self, block: BlockId) -> (usize, usize) {
        let (block, count) = (block.0 as usize, self.shape.slab_blocks());
        (block / count, block % count)
    }

    /// Holds a block, in a new slab if there is none yet.
    fn hold(&mut self, block: BlockId) -> Result<(), InferError> {
        let (number, place) = self.slab_of(block);
        if number >= self.slabs.len() {
            self.slabs.resize_with(number + 1, || None);
        }
        let slab = &mut self.slabs[number];
        let slab = match slab {
            Some(slab) => slab,
            None => {
                let count = self.shape.slab_blocks();
                let bytes = count.saturating_mul(self.shape.block_len());
                let refused = |_| InferError::NoMemory { wanted: Bytes::new(bytes as u64) };
                let memory = Memory::zeroed(bytes).map_err(refused)?;
                slab.insert(Slab { memory, held: vec![false; count] })
            }
        };
        slab.held[place] = true;
        Ok(())
    }

    /// Memory of the blocks and states that are held now.
    pub(crate) fn bytes(&self) -> Bytes {
        let held = self.slabs.iter().flatten().flat_map(|slab| &slab.held);
        let blocks = held.filter(|held| **held).count() as u64;
        let states = self.states.iter().filter(|states| !states.is_empty()).count() as u64;
        Bytes::new(blocks * self.shape.block_bytes().get() + states * self.shape.state_bytes().get())
    }

    pub(crate) const fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Makes room for the parts of a pass.
    ///
    /// # Errors
    /// [`InferError::CacheOverrun`] for a part that its blocks have no room for; [`InferError::CacheOfAnotherModel`]
    /// for a slot that there is not, or a block that two parts would write; [`InferError::NoMemory`].
    pub(crate) fn admit(&mut self, parts: &[Part<'_>]) -> Result<(), InferError> {
        let mut written: Vec<BlockId> = Vec::new();
        for part in parts {
            let end = part.position.checked_add(part.tokens.len());
            let room = part.blocks.len().saturating_mul(BLOCK_TOKENS);
            let Some(end) = end.filter(|end| *end <= room) else {
                return Err(InferError::CacheOverrun {
                    position: count(part.position),
                    tokens: count(part.tokens.len()),
                    capacity: count(room),
                });
            };
            written.extend(&part.blocks[part.position / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)]);
            if self.shape.is_recurrent() {
                self.begin(part)?;
            }
        }
        let count = written.len();
        written.sort_unstable();
        written.dedup();
        if written.len() < count {
            return Err(InferError::CacheOfAnotherModel);
        }
        for block in parts.iter().flat_map(|part| part.blocks) {
            self.hold(*block)?;
        }
        Ok(())
    }

    /// Empties the states of a slot where a sequence begins.
    fn begin(&mut self, part: &Part<'_>) -> Result<(), InferError> {
        let states = self.states.get_mut(part.slot).ok_or(InferError::CacheOfAnotherModel)?;
        if part.position == 0 || states.is_empty() {
            let floats = |layer: &LayerKv| match layer {
                LayerKv::Positions { .. } => 0,
                LayerKv::State { floats } => *floats,
            };
            *states = self.shape.layers.iter().map(|layer| vec![0.0; floats(layer)].into()).collect();
        }
        Ok(())
    }

    /// Everything, for the threads of a pass.
    pub(crate) fn view(&mut self) -> Blocks<'_> {
        let (count, len, dtype) = (self.shape.slab_blocks(), self.shape.block_len(), self.shape.dtype);
        let numbers = self.starts.last().copied().unwrap_or(0);
        let view = |held: bool, bytes| match dtype {
            _ if !held => View::Absent,
            KvDtype::F32 => View::F32(Scattered::new(cast_slice_mut(bytes))),
            KvDtype::Bf16 => View::Bf16(Scattered::new(cast_slice_mut(bytes))),
            KvDtype::Int8 => {
                let (codes, scales) = bytes.split_at_mut(numbers);
                let (codes, scales) = (cast_slice_mut(codes), cast_slice_mut(scales));
                View::Int8 { codes: Scattered::new(codes), scales: Scattered::new(scales) }
            }
        };
        let mut blocks = Vec::with_capacity(self.slabs.len() * count);
        for slab in &mut self.slabs {
            match slab {
                Some(Slab { memory, held }) => {
                    let mut rest = memory.bytes_mut();
                    blocks.extend(
                        held.iter().map(|held| view(*held, rest.split_off_mut(..len).unwrap_or_default())),
                    );
                }
                None => blocks.extend(std::iter::repeat_with(|| View::Absent).take(count)),
            }
        }
        let slots = self.states.iter_mut();
        let states =
            slots.map(|states| states.iter_mut().map(|state| Scattered::new(state)).collect()).collect();
        Blocks { shape: &self.shape, starts: &self.starts, blocks, states }
    }
}

/// Where a head's numbers lie in a block.
struct Place {
    /// The first of its keys; the values follow them.
    start: usize,
    keys: usize,
    values: usize,
}

impl Blocks<'_> {
    /// The state that a layer keeps of the sequence in a slot.
    pub(crate) fn state(&self, slot: usize, layer: usize) -> &Scattered<'_, f32> {
        &self.states[slot][layer]
    }

    /// Whether a layer keeps values beside its keys.
    pub(crate) fn keeps_values(&self, layer: usize) -> bool {
        matches!(self.shape.layers[layer], LayerKv::Positions { values: 1.., .. })
    }

    fn place(&self, at: Head) -> Place {
        let LayerKv::Positions { keys, values, .. } = self.shape.layers[at.layer] else {
            unreachable!("a layer that attends keeps positions")
        };
        Place { start: self.starts[at.layer] + at.head * (keys + values) * BLOCK_TOKENS, keys, values }
    }

    /// Where a head's scales lie among those of a block: of its keys, then of its values.
    fn scales(&self, at: Head) -> Range<usize> {
        let first = 2 * BLOCK_TOKENS * (self.shape.heads_before(at.layer) + at.head);
        first..first + 2 * BLOCK_TOKENS
    }

    /// Writes key and value of one position, the `offset`th of a block.
    ///
    /// # Safety
    /// No other thread uses this head of this block.
    #[expect(unsafe_code, reason = "threads write heads of their own of one block")]
    pub(crate) unsafe fn write(&self, block: BlockId, at: Head, offset: usize, key: &[f32], value: &[f32]) {
        let Place { start, keys, values } = self.place(at);
        debug_assert!(key.len() == keys && value.len() == values && offset < BLOCK_TOKENS);
        let across = |number: usize| number * BLOCK_TOKENS + offset;
        let (middle, end) = (keys * BLOCK_TOKENS, (keys + values) * BLOCK_TOKENS);
        let along = middle + offset * values;
        match &self.blocks[block.0 as usize] {
            View::Absent => unreachable!("admit() makes all blocks of a pass"),
            View::F32(numbers) => {
                // SAFETY: this head alone, by the caller's promise.
                let head = unsafe { numbers.part(start..start + end) };
                key.iter().enumerate().for_each(|(number, key)| head[across(number)] = *key);
                head[along..along + values].copy_from_slice(value);
            }
            View::Bf16(numbers) => {
                // SAFETY: this head alone, by the caller's promise.
                let head = unsafe { numbers.part(start..start + end) };
                key.iter().enumerate().for_each(|(number, key)| head[across(number)] = to_bf16(*key));
                head[along..].iter_mut().zip(value).for_each(|(out, value)| *out = to_bf16(*value));
            }
            View::Int8 { codes, scales } => {
                // SAFETY: this head alone, by the caller's promise.
                let head = unsafe { codes.part(start..start + end) };
                // SAFETY: this head alone, by the caller's promise.
                let own = unsafe { scales.part(self.scales(at)) };
                let (code, scale) = coder(key);
                own[offset] = scale;
                key.iter().enumerate().for_each(|(number, key)| head[across(number)] = code(*key));
                let (code, scale) = coder(value);
                own[BLOCK_TOKENS + offset] = scale;
                head[along..].iter_mut().zip(value).for_each(|(out, value)| *out = code(*value));
            }
        }
    }

    /// Keys and values of a head in a block.
    ///
    /// # Safety
    /// Nobody writes this head of this block meanwhile.
    #[expect(unsafe_code, reason = "threads read heads that nobody writes")]
    pub(crate) unsafe fn head(&self, block: BlockId, at: Head) -> Stored<'_> {
        let Place { start, keys, values } = self.place(at);
        let middle = start + keys * BLOCK_TOKENS;
        let (keys, values) = (start..middle, middle..middle + values * BLOCK_TOKENS);
        // SAFETY: this head alone, by the caller's promise.
        unsafe {
            match &self.blocks[block.0 as usize] {
                View::Absent => unreachable!("admit() makes all blocks of a pass"),
                View::F32(all) => Stored::F32 { keys: all.view(keys), values: all.view(values) },
                View::Bf16(all) => Stored::Bf16 { keys: all.view(keys), values: all.view(values) },
                View::Int8 { codes, scales } => {
                    let scales = scales.view(self.scales(at)).split_at(BLOCK_TOKENS);
                    Stored::Int8 { keys: codes.view(keys), values: codes.view(values), scales }
                }
            }
        }
    }
}

/// Keys (D, 32) and values (32, D) of a head, as they are kept.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    F32 {
        keys: &'a [f32],
        values: &'a [f32],
    },
    Bf16 {
        keys: &'a [u16],
        values: &'a [u16],
    },
    Int8 {
        keys: &'a [i8],
        values: &'a [i8],
        /// Of each position's key, and of its value.
        scales: (&'a [f32], &'a [f32]),
    },
}

impl<'a> Stored<'a> {
    /// Keys and values to compute with: as they are where that is possible and, with `direct`, pays; else as f32, in
    /// these buffers.
    pub(crate) fn floats(
        self,
        direct: bool,
        key_room: &'a mut [f32],
        value_room: &'a mut [f32],
    ) -> (Floats<'a>, Floats<'a>) {
        match (self, self.as_kept()) {
            (Self::F32 { .. }, Some(kept)) => kept,
            (_, Some(kept)) if direct => kept,
            _ => {
                let (key_room, value_room) = (&mut key_room[..self.keys()], &mut value_room[..self.values()]);
                simd::run(Widen { stored: self, keys: &mut *key_room, values: &mut *value_room });
                (Floats::F32(key_room), Floats::F32(value_room))
            }
        }
    }

    /// Keys and values as they are, unless they are no floats.
    pub(crate) const fn as_kept(self) -> Option<(Floats<'a>, Floats<'a>)> {
        match self {
            Self::F32 { keys, values } => Some((Floats::F32(keys), Floats::F32(values))),
            Self::Bf16 { keys, values } => Some((Floats::Bf16(keys), Floats::Bf16(values))),
            Self::Int8 { .. } => None,
        }
    }

    const fn keys(&self) -> usize {
        match self {
            Self::F32 { keys, .. } => keys.len(),
            Self::Bf16 { keys, .. } => keys.len(),
            Self::Int8 { keys, .. } => keys.len(),
        }
    }

    const fn values(&self) -> usize {
        match self {
            Self::F32 { values, .. } => values.len(),
            Self::Bf16 { values, .. } => values.len(),
            Self::Int8 { values, .. } => values.len(),
        }
    }
}

/// Writes what is stored as f32.
struct Widen<'s, 'a> {
    stored: Stored<'s>,
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

impl Kernel for Widen<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        let Self { stored, keys: key_out, values: value_out } = self;
        match stored {
            Stored::F32 { keys, values } => {
                key_out.copy_from_slice(keys);
                value_out.copy_from_slice(values);
            }
            Stored::Bf16 { keys, values } => {
                key_out.iter_mut().zip(keys).for_each(|(out, stored)| *out = from_bf16(*stored));
                value_out.iter_mut().zip(values).for_each(|(out, stored)| *out = from_bf16(*stored));
            }
            Stored::Int8 { keys, values, scales: (key_scales, value_scales) } => {
                let rows = key_out.chunks_exact_mut(BLOCK_TOKENS).zip(keys.chunks_exact(BLOCK_TOKENS));
                for (out, row) in rows {
                    for ((out, code), scale) in out.iter_mut().zip(row).zip(key_scales) {
                        *out = f32::from(*code) * scale;
                    }
                }
                let width = (values.len() / BLOCK_TOKENS).max(1);
                let rows = value_out.chunks_exact_mut(width).zip(values.chunks_exact(width));
                for ((out, row), scale) in rows.zip(value_scales) {
                    out.iter_mut().zip(row).for_each(|(out, code)| *out = f32::from(*code) * scale);
                }
            }
        }
    }
}

/// How a vector becomes codes of 8 bits, and the scale that turns them back.
fn coder(vector: &[f32]) -> (impl Fn(f32) -> i8, f32) {
    let largest = vector.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, reason = "at most 127 by the scale; a cast saturates")]
    (move |x: f32| (x * inverse).round() as i8, scale)
}

/// Some huge pages; few enough that a model which is asked little takes little.
const SLAB_BYTES: usize = 8 << 20;
/// For tiny models.
const SLAB_BLOCKS_MAX: usize = 64;

fn count(tokens: usize) -> ram_core::units::TokenCount {
    ram_core::units::TokenCount::new(tokens as u64)
}

#[cfg(test)]
#[expect(unsafe_code, reason = "one thread alone")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADS: usize = 2;
    const KEYS: usize = 4;
    const VALUES: usize = 6;

    fn pool(dtype: KvDtype) -> PagedKv {
        let attends = LayerKv::Positions { heads: HEADS, keys: KEYS, values: VALUES };
        let layers = vec![attends, LayerKv::State { floats: 3 }, attends];
        PagedKv::new(KvShape { layers, dtype }, 2)
    }

    fn part<'a>(tokens: &'a [u32], position: usize, blocks: &'a [BlockId]) -> Part<'a> {
        Part { tokens, position, blocks, slot: 1, logits: crate::batch::Wanted::None }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seed in 0_u32..1000) {
            let number = |i: usize| ((i as f32 + seed as f32) * 0.7).sin();
            for (dtype, tolerance) in [(KvDtype::F32, 0.0), (KvDtype::Bf16, 1.0 / 256.0), (KvDtype::Int8, 1.0 / 250.0)] {
                let mut pool = pool(dtype);
                let block = BlockId(3);
                pool.admit(&[part(&[0; 32], 0, &[block])]).unwrap();
                let blocks = pool.view();
                let places = [0, 2].into_iter().flat_map(|layer| (0..HEADS).map(move |head| Head { layer, head }));
                let vectors = |at: Head, offset: usize| -> (Vec<f32>, Vec<f32>) {
                    let first = 1000 * at.layer + 100 * at.head + offset;
                    ((0..KEYS).map(|i| number(first + 7 * i)).collect(), (0..VALUES).map(|i| number(first + 11 * i)).collect())
                };
                for at in places.clone() {
                    for offset in 0..BLOCK_TOKENS {
                        let (key, value) = vectors(at, offset);
                        // SAFETY: one thread.
                        unsafe { blocks.write(block, at, offset, &key, &value) };
                    }
                }
                for at in places {
                    let (mut keys, mut values) = (vec![0.0; KEYS * BLOCK_TOKENS], vec![0.0; VALUES * BLOCK_TOKENS]);
                    // SAFETY: one thread.
                    let stored = unsafe { blocks.head(block, at) };
                    simd::run(Widen { stored, keys: &mut keys, values: &mut values });
                    for offset in 0..BLOCK_TOKENS {
                        let (key, value) = vectors(at, offset);
                        for (i, key) in key.iter().enumerate() {
                            prop_assert!((keys[i * BLOCK_TOKENS + offset] - key).abs() <= tolerance);
                        }
                        for (i, value) in value.iter().enumerate() {
                            prop_assert!((values[offset * VALUES + i] - value).abs() <= tolerance);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_are_made_when_they_are_written_and_given_back() {
        let mut pool = pool(KvDtype::Bf16);
        assert_eq!(pool.bytes(), Bytes::ZERO);
        let block = pool.shape().block_bytes().get();
        assert_eq!(block, 2 * 2 * (HEADS * (KEYS + VALUES) * BLOCK_TOKENS) as u64);
        let blocks = [BlockId(5), BlockId(0)];
        pool.admit(&[part(&[0; 33], 0, &blocks)]).unwrap();
        assert_eq!(pool.bytes().get(), 2 * block + 12);
        pool.release(blocks[0]);
        assert_eq!(pool.bytes().get(), block + 12);
        assert_eq!(pool.slabs.iter().flatten().count(), 1);
        pool.release(blocks[0]);
        pool.release(blocks[1]);
        pool.release(BlockId(u32::MAX));
        assert_eq!((pool.bytes().get(), pool.slabs.iter().flatten().count()), (12, 0));
    }

    #[test]
    fn blocks_of_a_slab_lie_apart() {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            let mut pool = pool(dtype);
            let count = u32::try_from(2 * pool.shape.slab_blocks()).unwrap();
            let ids: Vec<_> = (0..count).map(BlockId).collect();
            let tokens = vec![0; ids.len() * BLOCK_TOKENS];
            pool.admit(&[part(&tokens, 0, &ids)]).unwrap();
            let blocks = pool.view();
            let at = Head { layer: 2, head: HEADS - 1 };
            for id in &ids {
                // SAFETY: one thread.
                unsafe { blocks.write(*id, at, 31, &[id.0 as f32; KEYS], &[-(id.0 as f32); VALUES]) };
            }
            for id in &ids {
                let (mut keys, mut values) =
                    (vec![0.0; KEYS * BLOCK_TOKENS], vec![0.0; VALUES * BLOCK_TOKENS]);
                // SAFETY: one thread.
                let stored = unsafe { blocks.head(*id, at) };
                simd::run(Widen { stored, keys: &mut keys, values: &mut values });
                let number = id.0 as f32;
                assert!((keys[31] - number).abs() < 1e-3 && (values[31 * VALUES] + number).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn layers_that_keep_no_positions_have_blocks_of_nothing() {
        let mut pool =
            PagedKv::new(KvShape { layers: vec![LayerKv::State { floats: 3 }], dtype: KvDtype::Bf16 }, 2);
        pool.admit(&[part(&[0; 33], 0, &[BlockId(5), BlockId(0)])]).unwrap();
        drop(pool.view());
        assert_eq!(pool.bytes(), Bytes::new(12));
    }

    #[test]
    fn memory_that_there_is_not_is_refused() {
        let layers = vec![LayerKv::Positions { heads: 1 << 20, keys: 1 << 20, values: 1 << 20 }];
        let mut pool = PagedKv::new(KvShape { layers, dtype: KvDtype::Bf16 }, 1);
        let refused = pool.admit(&[part(&[0], 0, &[BlockId(0)])]);
        assert!(matches!(refused, Err(InferError::NoMemory { .. })), "{refused:?}");
        assert_eq!(pool.bytes(), Bytes::ZERO);
    }

    #[test]
    fn a_part_without_room_is_refused() {
        let mut pool = pool(KvDtype::F32);
        let blocks = [BlockId(0)];
        let overrun = pool.admit(&[part(&[0; 2], 31, &blocks)]);
        assert!(matches!(overrun, Err(InferError::CacheOverrun { .. })));
        let overflow = pool.admit(&[part(&[0; 2], usize::MAX, &blocks)]);
        assert!(matches!(overflow, Err(InferError::CacheOverrun { .. })));
        let twice = pool.admit(&[part(&[0; 2], 0, &blocks), part(&[0; 2], 2, &blocks)]);
        assert_eq!(twice, Err(InferError::CacheOfAnotherModel));
        let beyond = Part { slot: 2, ..part(&[0], 0, &blocks) };
        assert_eq!(pool.admit(&[beyond]), Err(InferError::CacheOfAnotherModel));
    }
}
