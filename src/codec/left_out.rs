//! What stands for the algorithms whose cargo features are off: it makes no object and reads none.
//!
//! Nothing asks it to. A device is given no algorithm that is left out (`Algorithm::check`), and restored
//! from no image that may need one (`Codec::is_readable`).

#[cfg(not(feature = "lz4hc"))]
pub(super) mod lz4hc {
    use crate::units::Page;

    pub(in crate::codec) fn compress(_: &Page, _: i8, _: &mut [u8]) -> Option<usize> {
        None
    }
}

#[cfg(not(feature = "deflate"))]
pub(super) mod deflate {
    use crate::units::Page;

    #[derive(Default)]
    pub(in crate::codec) struct Deflate(());

    impl Deflate {
        pub(in crate::codec) fn compress(&self, _: &Page, _: i8, _: &mut [u8]) -> Option<usize> {
            None
        }

        pub(in crate::codec) fn decompress(&self, _: &[u8], _: &mut Page) -> bool {
            false
        }
    }
}

#[cfg(not(feature = "zstd"))]
pub(super) mod zstd {
    use crate::codec::dictionary::Dictionary;
    use crate::units::Page;

    #[derive(Default)]
    pub(in crate::codec) struct Zstd(());

    impl Zstd {
        pub(in crate::codec) fn compress(
            &self,
            _: &Page,
            _: Option<&Dictionary>,
            _: i8,
            _: &mut [u8],
        ) -> Option<usize> {
            None
        }

        pub(in crate::codec) fn decompress(
            &self,
            _: &[u8],
            _: Option<&Dictionary>,
            _: &mut Page,
        ) -> bool {
            false
        }
    }

    /// No dictionary is one of zstd's.
    pub(in crate::codec) enum CDict {}

    pub(in crate::codec) enum DDict {}

    impl CDict {
        pub(in crate::codec) fn try_create(_: &[u8], _: i32) -> Option<Self> {
            None
        }

        pub(in crate::codec) fn sizeof(&self) -> usize {
            match *self {}
        }
    }

    impl DDict {
        pub(in crate::codec) fn try_create(_: &[u8]) -> Option<Self> {
            None
        }

        pub(in crate::codec) fn sizeof(&self) -> usize {
            match *self {}
        }
    }

    pub(in crate::codec) fn train(_: &[Page], _: usize) -> Result<Vec<u8>, String> {
        Err("this build leaves zstd out".to_owned())
    }
}
