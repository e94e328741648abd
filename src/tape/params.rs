//! Parameters in flat arenas: one buffer each for weights, their f16 copy, gradients and Adam's moments, the same
//! element order in all, so that the optimiser, the norm and an all-reduce are a handful of launches.

use super::Arena;
use crate::error::{Error, Kind, Result};
use crate::gpu::{ALIGN, Buffer, BufferSlice, Gpu, Memory, Purpose, align};
use crate::ops::DType;
use std::collections::HashMap;

/// Elements between two possible starts of a parameter: 256 bytes of f32, the offset alignment of bindings. The f16
/// copy stands at half the byte offset, so parameters start at multiples of twice that.
pub const ELEMENT_ALIGN: usize = 2 * (ALIGN as usize) / 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) usize);

#[derive(Clone, Debug)]
pub struct ParamSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub trainable: bool,
    /// Weight decay of this tensor (0 for biases and LayerNorm).
    pub decay: f32,
    /// Factor on the learning rate (layer-wise decay).
    pub lr_scale: f32,
    offset: usize,
}

impl ParamSpec {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// First element in the arenas.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

/// Names, shapes and places of all parameters; no device.
#[derive(Clone, Debug, Default)]
pub struct ParamSet {
    specs: Vec<ParamSpec>,
    by_name: HashMap<String, ParamId>,
    elements: usize,
}

impl ParamSet {
    /// Adds a trainable parameter. Error: the name is taken.
    pub fn add(&mut self, name: &str, shape: &[usize], decay: f32) -> Result<ParamId> {
        let id = ParamId(self.specs.len());
        if self.by_name.insert(name.to_string(), id).is_some() {
            return Err(Error::new(Kind::Data, "add a parameter", format!("'{name}' is there twice")));
        }
        let spec = ParamSpec {
            name: name.into(),
            shape: shape.to_vec(),
            trainable: true,
            decay,
            lr_scale: 1.0,
            offset: self.elements,
        };
        self.elements += spec.elements().max(1).next_multiple_of(ELEMENT_ALIGN);
        self.specs.push(spec);
        Ok(id)
    }

    pub fn get(&self, id: ParamId) -> Result<&ParamSpec> {
        self.specs.get(id.0).ok_or_else(|| Error::new(Kind::Shape, "find a parameter", "it is not of this set"))
    }

    pub fn get_mut(&mut self, id: ParamId) -> Option<&mut ParamSpec> {
        self.specs.get_mut(id.0)
    }

    pub fn id(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &ParamSpec)> {
        self.specs.iter().enumerate().map(|(i, s)| (ParamId(i), s))
    }

    /// Elements of each arena, gaps included.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Bytes of one arena.
    pub fn arena_bytes(&self, arena: Arena) -> u64 {
        let width = if arena == Arena::Half { 2 } else { 4 };
        align(self.elements as u64 * width)
    }

    /// For every block of [`ELEMENT_ALIGN`] elements the number of its parameter, then for every parameter its
    /// (decay, lr_scale), 0 for one that is not trained: what the optimiser reads beside the arenas.
    pub fn optimizer_tables(&self) -> (Vec<u32>, Vec<[f32; 2]>) {
        let mut blocks = Vec::with_capacity(self.elements / ELEMENT_ALIGN);
        let mut table = Vec::with_capacity(self.specs.len());
        for (index, spec) in self.specs.iter().enumerate() {
            let count = spec.elements().max(1).div_ceil(ELEMENT_ALIGN);
            blocks.extend(std::iter::repeat_n(index as u32, count));
            let lr_scale = if spec.trainable { spec.lr_scale } else { 0.0 };
            table.push([spec.decay, lr_scale]);
        }
        (blocks, table)
    }
}

/// The arenas on a device.
pub struct ParamStore {
    arenas: HashMap<Arena, Buffer>,
    elements: usize,
}

impl ParamStore {
    pub const fn purpose(arena: Arena) -> Purpose {
        match arena {
            Arena::Weights | Arena::Half => Purpose::Parameters,
            Arena::Gradients => Purpose::Gradients,
            Arena::Moment1 | Arena::Moment2 => Purpose::Optimizer,
        }
    }

    /// What `arenas` of `set` will take.
    pub fn memory(set: &ParamSet, arenas: &[Arena]) -> Memory {
        let mut memory = Memory::default();
        for &arena in arenas {
            memory.add(Self::purpose(arena), set.arena_bytes(arena));
        }
        memory
    }

    /// Allocates `arenas`, zeroed.
    pub fn new(gpu: &Gpu, set: &ParamSet, arenas: &[Arena]) -> Result<ParamStore> {
        let mut store = ParamStore { arenas: HashMap::new(), elements: set.elements() };
        for &arena in arenas {
            let label = format!("{arena:?} arena");
            store.arenas.insert(arena, gpu.buffer(&label, Self::purpose(arena), set.arena_bytes(arena))?);
        }
        Ok(store)
    }

    fn arena(&self, arena: Arena) -> Result<&Buffer> {
        let missing = || Error::new(Kind::Shape, "use the parameter store", format!("it has no {arena:?} arena"));
        self.arenas.get(&arena).ok_or_else(missing)
    }

    /// A whole arena.
    pub fn whole(&self, arena: Arena) -> Result<BufferSlice> {
        let width = if arena == Arena::Half { DType::F16 } else { DType::F32 }.bytes();
        Ok(self.arena(arena)?.slice(0, self.elements as u64 * width))
    }

    /// The slice of one parameter in an arena.
    pub fn slice(&self, spec: &ParamSpec, arena: Arena) -> Result<BufferSlice> {
        let width = if arena == Arena::Half { DType::F16 } else { DType::F32 }.bytes();
        let bytes = (spec.elements().max(1) as u64 * width).next_multiple_of(16);
        Ok(self.arena(arena)?.slice(spec.offset as u64 * width, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_start_where_bindings_may_start_in_every_arena() {
        let mut set = ParamSet::default();
        for (i, n) in [1usize, 127, 128, 129, 5000].into_iter().enumerate() {
            set.add(&format!("p{i}"), &[n], 0.0).unwrap();
        }
        for (_, p) in set.iter() {
            assert_eq!(p.offset() as u64 * 2 % ALIGN, 0, "{}", p.name);
        }
        let (blocks, table) = set.optimizer_tables();
        assert_eq!(blocks.len() * ELEMENT_ALIGN, set.elements());
        assert_eq!(table.len(), 5);
        assert_eq!(blocks[3], 3, "129 elements take two blocks, 128 and 127 one each");
    }

    #[test]
    fn a_name_twice_is_an_error() {
        let mut set = ParamSet::default();
        set.add("w", &[2], 0.0).unwrap();
        assert!(set.add("w", &[2], 0.0).is_err());
    }
}
