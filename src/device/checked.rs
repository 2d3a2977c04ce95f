//! Requests of a program that embeds a device: checked here, where a frontend checks its own. Any alignment is
//! served.

use super::Device;
use crate::block_device::{BlockDevice, check_range};
use crate::error::Result;

impl Device {
    /// Bytes in the device.
    pub fn size(&self) -> u64 {
        BlockDevice::size(self)
    }

    /// Makes what was written before this as durable as the device promises: if it has an image to destage to, it
    /// is there; memory promises nothing.
    ///
    /// # Errors
    /// Those of [`Device::sync`].
    pub fn flush(&self) -> Result<()> {
        BlockDevice::flush(self)
    }

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] past the end of the device; those of [`BlockDevice::read`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size())?;
        self.read(offset, buf)
    }

    /// Stores `data` at byte `offset`. That is fastest in whole pages of 4096 bytes.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] past the end of the device, and nothing is stored; those of
    /// [`BlockDevice::write`].
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_range(offset, data.len() as u64, self.size())?;
        self.write(offset, data)
    }

    /// Makes `len` bytes at `offset` zeroes that cost nothing.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] past the end of the device; those of [`BlockDevice::discard`].
    pub fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size())?;
        self.discard(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceConfig;
    use crate::error::Error;

    /// Also in what the device may be grown to.
    #[test]
    fn nothing_is_read_or_stored_past_the_end() {
        const SIZE: u64 = 64 << 10;
        let mut config = DeviceConfig::new(SIZE);
        config.max_size = Some(2 * SIZE);
        let device = Device::new(&config).expect("a device");
        let mut buf = [0; 8];
        for offset in [SIZE - 7, SIZE, SIZE + 4096, u64::MAX - 3] {
            let refused = [
                device.write_at(offset, &[1; 8]),
                device.read_at(offset, &mut buf),
                device.discard_at(offset, 8),
            ];
            let is_out = |result: &Result<()>| matches!(result, Err(Error::OutOfRange { .. }));
            assert!(refused.iter().all(is_out), "{offset}: {refused:?}");
        }
        device.resize(2 * SIZE).expect("it can grow");
        device
            .read_at(SIZE, &mut buf)
            .expect("inside the device now");
        assert_eq!(buf, [0; 8]);
        device.write_at(2 * SIZE - 8, &[2; 8]).expect("room");
        device.read_at(2 * SIZE - 8, &mut buf).expect("there");
        assert_eq!(buf, [2; 8]);
        device.discard_at(SIZE, SIZE).expect("no room needed");
        assert_eq!(device.orig_data_size(), 0);
    }
}
