//! Memory for objects, reused for later objects.
//!
//! It is mapped from the system. The C library's allocator would fragment: objects of many sizes leave gaps into which the
//! next object does not fit. It is reused, because the system clears and maps new memory page by page.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Buffers have multiples of this size, so that objects of similar size can reuse each other's buffer. A part of a buffer
/// that no object has reached takes no memory, unless the system maps huge pages.
const STEP_BYTES: usize = 1 << 20;

/// Limit of unused memory that is kept.
const MAX_UNUSED_BYTES: usize = 16 << 20;

/// Unused buffers, the latest last.
#[derive(Clone, Default)]
pub(super) struct BufferPool(Arc<Mutex<VecDeque<MmapMut>>>);

/// Memory for one object and its received bytes. It returns to the pool when it is dropped.
pub(super) struct Buffer {
    /// `None` only while it is dropped.
    memory: Option<MmapMut>,
    announced: usize,
    arrived: usize,
    pool: BufferPool,
}

impl BufferPool {
    /// A buffer for an object of this size: whole steps, and if it is reused at most a quarter, or one step, more.
    ///
    /// # Errors
    /// When the system has no memory.
    pub(super) fn take(&self, bytes: u64) -> io::Result<Buffer> {
        let announced = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let least = announced.max(1).checked_next_multiple_of(STEP_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let fits = least..=least.saturating_add((least / 4).max(STEP_BYTES));
        let kept = {
            let mut unused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = unused.iter().enumerate().rev().filter(|(_, kept)| fits.contains(&kept.len()));
            let smallest = fitting.min_by_key(|(_, kept)| kept.len()).map(|(at, _)| at);
            smallest.and_then(|at| unused.remove(at))
        };
        let memory = kept.map_or_else(|| MmapMut::map_anon(least), Ok)?;
        Ok(Buffer { memory: Some(memory), announced, arrived: 0, pool: self.clone() })
    }

    fn put_back(&self, memory: MmapMut) {
        if memory.len() > MAX_UNUSED_BYTES {
            return;
        }
        // Unmapped after the lock is released.
        let mut excess = Vec::new();
        let mut unused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unused.push_back(memory);
        while unused.iter().map(|kept| kept.len()).sum::<usize>() > MAX_UNUSED_BYTES {
            excess.extend(unused.pop_front());
        }
        drop(unused);
    }
}

impl Buffer {
    /// Appends received bytes. Returns false when there are more than announced.
    pub(super) fn push(&mut self, chunk: &[u8]) -> bool {
        let end = self.arrived + chunk.len();
        let room = self.memory.as_deref_mut().and_then(|memory| memory[..self.announced].get_mut(self.arrived..end));
        let Some(room) = room else { return false };
        room.copy_from_slice(chunk);
        self.arrived = end;
        true
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_deref().map_or(&[], |memory| &memory[..self.arrived])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.put_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = STEP_BYTES as u64;

    /// Has an object of this size come and go, and returns where it was.
    fn object(pool: &BufferPool, bytes: u64) -> *const u8 {
        let mut buffer = pool.take(bytes).unwrap();
        assert!(buffer.push(&vec![1; usize::try_from(bytes).unwrap()]));
        buffer.as_ref().as_ptr()
    }

    /// Steps of each that is kept.
    fn kept(pool: &BufferPool) -> Vec<usize> {
        pool.0.lock().unwrap().iter().map(|kept| kept.len() / STEP_BYTES).collect()
    }

    #[test]
    fn objects_of_much_the_same_size_have_the_same_memory() {
        let pool = BufferPool::default();
        for bytes in [4 * MIB - 1, 4 * MIB - 1000, 4 * MIB, 3 * MIB, 4 * MIB] {
            object(&pool, bytes);
            assert_eq!(kept(&pool), [4], "{bytes}");
        }
        let _two = [4 * MIB, 4 * MIB].map(|bytes| pool.take(bytes).unwrap());
        assert!(kept(&pool).is_empty());
    }

    #[test]
    fn an_object_has_the_smallest_memory_that_fits_and_none_that_is_far_too_large() {
        let pool = BufferPool::default();
        drop([2, 1, 3, 4].map(|steps| pool.take(steps * MIB).unwrap()));
        let _held = pool.take(2 * MIB).unwrap();
        assert_eq!(kept(&pool), [1, 3, 4]);
        let _small = [0, 1].map(|bytes| pool.take(bytes).unwrap());
        assert_eq!(kept(&pool), [3, 4]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_came_last_stays() {
        let pool = BufferPool::default();
        object(&pool, 3 * MIB);
        object(&pool, MAX_UNUSED_BYTES as u64 + 1);
        assert_eq!(kept(&pool), [3], "what is not kept itself drives nothing out");
        drop([7, 7].map(|steps| pool.take(steps * MIB).unwrap()));
        assert_eq!(kept(&pool), [7, 7]);
    }

    #[test]
    fn an_object_is_what_was_pushed_and_nothing_of_the_one_before_it() {
        let pool = BufferPool::default();
        let place = object(&pool, 1000);
        let mut buffer = pool.take(3).unwrap();
        assert!(buffer.as_ref().is_empty());
        assert!(buffer.push(b"ab") && buffer.push(b"") && !buffer.push(b"cd"), "one byte is to come");
        assert_eq!(buffer.as_ref(), b"ab");
        assert!(buffer.push(b"c"));
        assert_eq!(buffer.as_ref(), b"abc");
        assert_eq!(buffer.as_ref().as_ptr(), place);
    }
}
