//! The threads of one context. None are global, none are started before a context is made.

use std::num::NonZero;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crate::error::{Result, ensure, fail};

use super::Environment;

/// A limit on the request, far above any machine, so that a wrong number is an error and not exhausted memory.
const MOST_THREADS: usize = 4096;

/// How often this process came out of a `fork` as the child.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// How often so far, counted since the first context was made.
pub fn forks() -> u64 {
    watch_forks();
    FORKS.load(Ordering::Relaxed)
}

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

fn watch_forks() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the handler only touches an atomic, and the library is never unmapped.
        #[cfg(not(miri))]
        unsafe {
            libc::pthread_atfork(None, None, Some(count_fork));
        }
    });
}

/// A pool with its threads, and the process it belongs to: after a fork its threads exist in the parent only.
struct Pool {
    forks: u64,
    pool: rayon::ThreadPool,
    handles: Vec<JoinHandle<()>>,
}

impl Pool {
    fn new(forks: u64, count: usize) -> Result<Pool> {
        let mut handles = Vec::new();
        let spawn = |thread: rayon::ThreadBuilder| {
            let builder = std::thread::Builder::new().name(format!("fp8rt-{}", thread.index()));
            handles.push(builder.spawn(|| thread.run())?);
            Ok(())
        };
        match rayon::ThreadPoolBuilder::new().num_threads(count).spawn_handler(spawn).build() {
            Ok(pool) => Ok(Pool { forks, pool, handles }),
            Err(error) => fail!(OutOfMemory, "cannot start {count} threads: {error}"),
        }
    }

    /// Ends the threads, and returns when they are gone.
    fn end(self) {
        drop(self.pool);
        for handle in self.handles {
            // A thread of a pool carries panics to the caller and never ends by one.
            let _ = handle.join();
        }
    }
}

/// A number of threads, started by the first work that needs them, and again in a forked child.
pub struct Threads {
    count: usize,
    pool: AtomicPtr<Pool>,
}

impl Threads {
    /// `count` of 0 means as many as this process may use.
    pub fn new(count: usize) -> Result<Threads> {
        ensure!(count <= MOST_THREADS, InvalidArgument, "num_threads is {count}, at most {MOST_THREADS} are taken");
        watch_forks();
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            _ => count,
        };
        Ok(Threads { count, pool: AtomicPtr::new(std::ptr::null_mut()) })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Starts the threads, so that the first run need not.
    pub fn prepare(&self) -> Result<()> {
        if self.count > 1 {
            self.pool()?;
        }
        Ok(())
    }

    /// Calls `work(worker, task)` once for each task below `tasks`, on at most `count` threads, each with a worker number
    /// below `count`, in the default floating-point mode. Returns when all are done. One task runs on the caller's thread.
    pub fn for_each(&self, tasks: usize, work: impl Fn(usize, usize) + Sync) -> Result<()> {
        if tasks <= 1 || self.count == 1 {
            Environment::with(|| (0..tasks).for_each(|task| work(0, task)));
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        self.pool()?.broadcast(|worker| {
            Environment::with(|| {
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= tasks {
                        break;
                    }
                    work(worker.index(), task);
                }
            });
        });
        Ok(())
    }

    fn pool(&self) -> Result<&rayon::ThreadPool> {
        let forks = FORKS.load(Ordering::Relaxed);
        let current = self.pool.load(Ordering::Acquire);
        // SAFETY: a pool that was published stays until the context is destroyed, which excludes running.
        if let Some(pool) = unsafe { current.as_ref() }
            && pool.forks == forks
        {
            return Ok(&pool.pool);
        }
        let built = Box::into_raw(Box::new(Pool::new(forks, self.count)?));
        // A pool from before a fork is leaked: its threads are gone, so it can be neither stopped nor joined.
        match self.pool.compare_exchange(current, built, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: published just now.
            Ok(_) => Ok(unsafe { &(*built).pool }),
            Err(other) => {
                // SAFETY: `built` was never published; `other` was, by a thread that came first.
                unsafe {
                    Box::from_raw(built).end();
                    Ok(&(*other).pool)
                }
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let pool = *self.pool.get_mut();
        // SAFETY: nobody runs any more; a pool of the process before a fork is left alone.
        unsafe {
            if !pool.is_null() && (*pool).forks == FORKS.load(Ordering::Relaxed) {
                Box::from_raw(pool).end();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_under_a_worker_below_the_count() {
        for count in [1, 2, 3] {
            let threads = Threads::new(count).unwrap();
            for tasks in [0, 1, 2, 17] {
                let runs: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let work = |worker: usize, task: usize| {
                    assert!(worker < count);
                    runs[task].fetch_add(1, Ordering::Relaxed);
                };
                threads.for_each(tasks, work).unwrap();
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_of_a_task_reaches_the_caller() {
        let threads = Threads::new(2).unwrap();
        let run = || threads.for_each(4, |_, task| assert_ne!(task, 3, "task 3 fails")).unwrap();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    }

    #[test]
    fn a_wrong_number_of_threads_is_an_error() {
        assert!(Threads::new(MOST_THREADS + 1).is_err());
    }
}
