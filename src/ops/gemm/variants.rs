//! Which kernels can make a product on an adapter, and which of them first.
//!
//! `subgroup`: drivers that run a subgroup as one vector of a CPU core. `tile`: everywhere. `coop`: f16 operands where the
//! adapter lists cooperative matrices. Names carry the tile of C and the step along K: `tile/64x64x16`.

use super::product::Product;
use crate::gpu::{Backend, Caps, KernelKey};
use crate::ops::{DType, Variant};

/// A kernel with its sizes; a variant's arguments are one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `tm` rows by `lanes * tn` columns a subgroup.
    Subgroup { tm: u32, tn: u32, lanes: u32 },
    /// `bm` x `bn` a workgroup in steps of `bk`, `tm` x `tn` an invocation.
    Tile { bm: u32, bn: u32, bk: u32, tm: u32, tn: u32, unroll: u32 },
    /// `bm` x `bn` a workgroup of `wm` x `wn` subgroups, on matrices of `size`; `vector`: staged four elements at a time.
    Coop { bm: u32, bn: u32, bk: u32, wm: u32, wn: u32, size: u32, lanes: u32, vector: u32 },
}

impl Scheme {
    fn args(self) -> Vec<u32> {
        match self {
            Scheme::Subgroup { tm, tn, lanes } => vec![0, tm, tn, lanes],
            Scheme::Tile { bm, bn, bk, tm, tn, unroll } => vec![1, bm, bn, bk, tm, tn, unroll],
            Scheme::Coop { bm, bn, bk, wm, wn, size, lanes, vector } => {
                vec![2, bm, bn, bk, wm, wn, size, lanes, vector]
            }
        }
    }

    pub(super) fn from_args(args: &[u32]) -> Scheme {
        match *args {
            [0, tm, tn, lanes] => Scheme::Subgroup { tm, tn, lanes },
            [1, bm, bn, bk, tm, tn, unroll] => Scheme::Tile { bm, bn, bk, tm, tn, unroll },
            [2, bm, bn, bk, wm, wn, size, lanes, vector] => Scheme::Coop { bm, bn, bk, wm, wn, size, lanes, vector },
            // Not ours: the portable kernel at its smallest is right everywhere.
            _ => SMALL_TILE,
        }
    }

    /// Rows and columns of C that a workgroup makes.
    pub(super) fn tile(self) -> (usize, usize) {
        match self {
            Scheme::Subgroup { tm, tn, lanes } => (tm as usize, (tn * lanes) as usize),
            Scheme::Tile { bm, bn, .. } | Scheme::Coop { bm, bn, .. } => (bm as usize, bn as usize),
        }
    }

    pub(super) fn kernel(self) -> KernelKey {
        match self {
            Scheme::Subgroup { tm, tn, lanes } => {
                KernelKey::new("gemm_subgroup.wgsl", "main").with("TM", tm).with("TN", tn).with("S", lanes)
            }
            Scheme::Tile { bm, bn, bk, tm, tn, unroll } => KernelKey::new("gemm_tile.wgsl", "main")
                .with("BM", bm)
                .with("BN", bn)
                .with("BK", bk)
                .with("TM", tm)
                .with("TN", tn)
                .with("UNROLL", unroll),
            Scheme::Coop { bm, bn, bk, wm, wn, size, lanes, vector } => KernelKey::new("gemm_coop.wgsl", "main")
                .with("BM", bm)
                .with("BN", bn)
                .with("BK", bk)
                .with("WM", wm)
                .with("WN", wn)
                .with("T", size)
                .with("S", lanes)
                .with("VS", vector)
                .with("UNROLL", if bm * bn >= 4096 { bk / size } else { 1 }),
        }
    }

    fn variant(self) -> Variant {
        let name = match self {
            Scheme::Subgroup { tm, tn, lanes } => format!("subgroup/{tm}x{}", tn * lanes),
            Scheme::Tile { bm, bn, bk, .. } => format!("tile/{bm}x{bn}x{bk}"),
            Scheme::Coop { bm, bn, bk, .. } => format!("coop/{bm}x{bn}x{bk}"),
        };
        Variant::new(name, &self.args())
    }

    fn fits(self, caps: &Caps) -> bool {
        let (invocations, bytes) = match self {
            Scheme::Subgroup { lanes, .. } => (lanes, 0),
            Scheme::Tile { bm, bn, bk, tm, tn, .. } => ((bm / tm) * (bn / tn), 16 * bk * (bm / 4 + bn / 4 + 2)),
            Scheme::Coop { bm, bn, bk, wm, wn, size, lanes, .. } => {
                // Staged operands, padded along whichever way they lie (the longer padding), and a row of results.
                let staged = 2 * ((bm + bn) * bk + 8 * (bm.max(bk) + bn.max(bk)));
                (wm * wn * lanes, staged + 4 * size * wm * bn)
            }
        };
        invocations <= caps.limits.workgroup_invocations && bytes <= caps.limits.workgroup_bytes
    }

    /// Rate with full tiles against the best of its kind: more arithmetic for each element fetched is faster.
    fn rate(self) -> f64 {
        match self {
            Scheme::Subgroup { tm, tn, .. } => match (tm, tn) {
                (24, 8) => 1.0,
                (32, 4) | (16, 8) => 0.92,
                _ => 0.62,
            },
            Scheme::Tile { bm, bn, .. } | Scheme::Coop { bm, bn, .. } => match bm * bn {
                16384.. => 1.0,
                8192.. => 0.9,
                4096.. => 0.75,
                _ => 0.4,
            },
        }
    }

    /// Time of `product` in arbitrary units: padded work over the rate, and on a GPU over the share that is kept busy.
    fn time(self, product: &Product, caps: &Caps) -> f64 {
        let (bm, bn) = self.tile();
        let (tiles_m, tiles_n) = (product.m.div_ceil(bm), product.n.div_ceil(bn));
        let work = (tiles_m * bm * tiles_n * bn) as f64 / self.rate();
        if caps.is_cpu() {
            return work;
        }
        // Fewer workgroups than a GPU has places leave places empty. K can be cut for plain products only, but those are
        // the ones with few tiles.
        const PLACES: f64 = 128.0;
        let groups = (tiles_m * tiles_n * product.batch) as f64 * (product.k / 512).clamp(1, 16) as f64;
        work / (groups / PLACES).min(1.0)
    }
}

const SMALL_TILE: Scheme = Scheme::Tile { bm: 32, bn: 32, bk: 16, tm: 4, tn: 4, unroll: 4 };
const MIDDLE_TILE: Scheme = Scheme::Tile { bm: 64, bn: 64, bk: 16, tm: 8, tn: 8, unroll: 4 };
const LARGE_TILE: Scheme = Scheme::Tile { bm: 128, bn: 128, bk: 16, tm: 8, tn: 8, unroll: 4 };

/// Every way to make `product` on such an adapter, preferred first.
pub fn variants(product: &Product, caps: &Caps) -> Vec<Variant> {
    let mut schemes = Vec::new();
    if caps.is_cpu() {
        schemes.extend(subgroup_schemes(product, caps));
        schemes.push(SMALL_TILE);
        // Slow here, but what a GPU runs can be tested.
        let larger = [MIDDLE_TILE, LARGE_TILE];
        schemes.extend(larger.into_iter().filter(|s| product.m >= s.tile().0 && product.n >= s.tile().1));
        schemes.extend(coop_schemes(product, caps));
    } else {
        schemes.extend(coop_schemes(product, caps));
        let mut tiles = vec![LARGE_TILE, MIDDLE_TILE, SMALL_TILE];
        sort_by_time(&mut tiles, product, caps);
        schemes.extend(tiles);
    }
    schemes.retain(|s| s.fits(caps));
    if schemes.is_empty() {
        schemes.push(SMALL_TILE);
    }
    schemes.into_iter().map(Scheme::variant).collect()
}

fn sort_by_time(schemes: &mut [Scheme], product: &Product, caps: &Caps) {
    schemes.sort_by(|a, b| a.time(product, caps).total_cmp(&b.time(product, caps)));
}

fn subgroup_schemes(product: &Product, caps: &Caps) -> Vec<Scheme> {
    let Some(lanes) = caps.fixed_subgroup().filter(|s| (4..=32).contains(s)) else { return Vec::new() };
    let scheme = |(tm, tn)| Scheme::Subgroup { tm, tn, lanes };
    // Compiling a kernel takes 0.1 s at 8x4 and 0.6 s at 24x8: small products do not earn that back.
    let work = product.m * product.n * product.k * product.batch;
    /// TM and TN.
    type Sizes = &'static [(u32, u32)];
    let (sizes, others): (Sizes, Sizes) = match work {
        0x800_0000.. => (&[(24, 8), (32, 4), (16, 8), (8, 4)], &[]),
        0x40_0000.. => (&[(32, 4), (16, 8), (8, 4)], &[(24, 8)]),
        _ => (&[(8, 4)], &[(16, 8)]),
    };
    let mut schemes: Vec<Scheme> = sizes.iter().copied().map(scheme).collect();
    sort_by_time(&mut schemes, product, caps);
    schemes.extend(others.iter().copied().map(scheme));
    schemes
}

fn coop_schemes(product: &Product, caps: &Caps) -> Vec<Scheme> {
    let Some(lanes) = caps.fixed_subgroup() else { return Vec::new() };
    // One row or column fills no matrix.
    if !caps.f16 || product.a != DType::F16 || product.b != DType::F16 || product.m < 8 || product.n < 8 {
        return Vec::new();
    }
    let Some(size) = caps.coop_f32().filter(|s| [8, 16].contains(s)).max() else { return Vec::new() };
    let vector = if caps.backend == Backend::Vulkan { 4 } else { 1 };
    let scheme = |bm, bn, bk, wm, wn| Scheme::Coop { bm, bn, bk, wm, wn, size, lanes, vector };
    if caps.is_cpu() {
        // The driver spells every matrix operation out: larger tiles take a minute to compile.
        return vec![scheme(2 * size, 2 * size, size, 1, 2)];
    }
    let mut schemes =
        vec![scheme(128, 128, 32, 2, 4), scheme(128, 64, 32, 2, 2), scheme(64, 64, 32, 2, 2), scheme(32, 32, 32, 1, 2)];
    schemes.retain(|s| s.fits(caps));
    sort_by_time(&mut schemes, product, caps);
    schemes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{CoopMatrix, DeviceClass, Limits, Timestamps};
    use crate::ops::gemm::Layout;

    fn adapter(class: DeviceClass, subgroup: Option<(u32, u32)>, coop: Option<u32>, workgroup_bytes: u32) -> Caps {
        Caps {
            name: "made up".into(),
            backend: Backend::Vulkan,
            class,
            driver: String::new(),
            f16: coop.is_some(),
            subgroup,
            coop: coop.into_iter().map(|size| CoopMatrix { size, f32_accumulate: true }).collect(),
            timestamps: Timestamps::None,
            limits: Limits {
                binding_bytes: 128 << 20,
                buffer_bytes: 256 << 20,
                storage_buffers: 8,
                workgroup_bytes,
                workgroup_invocations: 256,
                workgroups_per_dimension: 65_535,
                immediate_bytes: 128,
                offset_alignment: 256,
            },
        }
    }

    fn first(caps: &Caps, size: [usize; 3], dtype: DType) -> String {
        variants(&Product::new(Layout::Nt, size, [dtype; 3]), caps)[0].name.clone()
    }

    #[test]
    fn each_class_of_adapter_gets_its_kernel() {
        let nvidia = adapter(DeviceClass::Discrete, Some((32, 32)), Some(16), 49_152);
        assert_eq!(first(&nvidia, [4096, 3072, 768], DType::F16), "coop/128x128x32");
        assert_eq!(first(&nvidia, [4096, 3072, 768], DType::F32), "tile/128x128x16");
        assert_eq!(first(&nvidia, [128, 2, 256], DType::F32), "tile/32x32x16");
        let intel = adapter(DeviceClass::Integrated, Some((8, 32)), Some(16), 32_768);
        assert!(first(&intel, [1024, 256, 256], DType::F16).starts_with("tile/"), "its subgroups vary");
        let least = adapter(DeviceClass::Other, None, None, 16_384);
        assert_eq!(first(&least, [4096, 4096, 256], DType::F32), "tile/64x64x16");
        let software = adapter(DeviceClass::Cpu, Some((8, 8)), Some(8), 32_768);
        assert_eq!(first(&software, [4096, 1024, 256], DType::F16), "subgroup/24x64");
        assert_eq!(first(&software, [8, 64, 64], DType::F32), "subgroup/8x32");
    }

    #[test]
    fn a_variant_comes_back_from_its_arguments() {
        let nvidia = adapter(DeviceClass::Discrete, Some((32, 32)), Some(16), 49_152);
        for variant in variants(&Product::new(Layout::Nn, [512, 512, 512], [DType::F16; 3]), &nvidia) {
            assert_eq!(Scheme::from_args(&variant.args).variant(), variant);
        }
    }
}
