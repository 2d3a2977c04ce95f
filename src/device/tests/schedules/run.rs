//! Runs models.

use std::cell::Cell;
use std::collections::HashMap;

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use support::Random;

use crate::pool::PoolKind;
use crate::sync::{Protection, take_out, time};

/// Most decisions of a run; more, and its threads wait for each other in circles.
const MAX_STEPS: usize = 300_000;

/// Seeds that a model is tried with, unless `UZRAM_SEEDS` says otherwise.
const SEEDS: u64 = 100;

/// Seeds of which one has to fail without a protection.
const SEEDS_WITHOUT: u64 = 20_000;

std::thread_local! {
    static POOL: Cell<PoolKind> = const { Cell::new(PoolKind::Zsmalloc) };
}

/// What a model does, in the first of its threads.
pub(super) type Model = fn();

/// Runs a model with seed after seed.
pub(super) fn holds(name: &str, model: Model) {
    for seed in seeds(SEEDS) {
        run(seed, MAX_STEPS, None, model).unwrap_or_else(|()| report(name, seed));
    }
}

/// Runs a model without a protection: some seeds must fail, and not all, since it is a race that
/// the protection is there for.
pub(super) fn fails_without(protection: Protection, model: Model) {
    let fails = |seed: &u64| run(*seed, MAX_STEPS, Some(protection), model).is_err();
    let failed = (0..SEEDS_WITHOUT).find(fails);
    let held = (0..SEEDS).find(|seed| !fails(seed));
    let Some(failed) = failed else {
        panic!("it holds without {protection:?}: {SEEDS_WITHOUT} seeds");
    };
    let held = held.unwrap_or_else(|| panic!("it never holds without {protection:?}"));
    println!("without {protection:?} it fails with seed {failed} and holds with {held}");
}

/// The seeds to run with: `UZRAM_SEEDS` from `UZRAM_SEED` on.
pub(super) fn seeds(many: u64) -> std::ops::Range<u64> {
    let number = |name| {
        let value = std::env::var(name).ok()?;
        Some(value.parse::<u64>().expect("a number"))
    };
    let first = number("UZRAM_SEED");
    let many = number("UZRAM_SEEDS").unwrap_or(if first.is_some() { 1 } else { many });
    first.unwrap_or(0)..first.unwrap_or(0) + many
}

/// The allocator of the run that this thread makes: each has its turn.
pub(super) fn pool() -> PoolKind {
    POOL.get()
}

/// Says how a seed that failed is replayed.
pub(super) fn report(name: &str, seed: u64) -> ! {
    let test = name.split_once("::").map_or(name, |(_, test)| test);
    panic!(
        "failed with seed {seed}. To replay it:\n    \
         UZRAM_SEED={seed} RUSTC_WORKSPACE_WRAPPER=scripts/with-shuttle cargo test --lib -- --exact --nocapture {test}"
    );
}

/// Runs `model` once, without a protection if one is given, under a scheduler that does as the seed
/// says. On a thread of its own, since what a run that failed leaves behind is the thread's.
pub(super) fn run(
    seed: u64,
    max_steps: usize,
    removed: Option<Protection>,
    model: impl Fn() + Send + Sync + 'static,
) -> Result<(), ()> {
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(max_steps);
    let run = move || {
        take_out(removed);
        POOL.set(PoolKind::ALL[(seed % 3) as usize]);
        let runner = Runner::new(Seeded::new(seed), config);
        runner.run(move || {
            time::restart();
            model();
        });
    };
    std::thread::spawn(run).join().map_err(drop)
}

/// Chooses which thread goes on, in a manner that depends on the seed: some races want threads that
/// take turns, some one that stands still while the others do much.
struct Seeded {
    seed: u64,
    random: Random,
    manner: Manner,
    begun: bool,
}

enum Manner {
    /// Any thread, but of 16 times this often the one that was running, if it can.
    Turns { stays: u64 },
    /// The thread with the highest rank, which it loses now and then (the probabilistic
    /// concurrency testing of Burckhardt and others).
    Ranks {
        of_task: HashMap<TaskId, u64>,
        lowest: u64,
    },
}

impl Seeded {
    fn new(seed: u64) -> Self {
        let manner = match seed % 4 {
            3 => Manner::Ranks {
                of_task: HashMap::new(),
                lowest: u64::MAX / 2,
            },
            n => Manner::Turns {
                stays: [0, 10, 15][n as usize],
            },
        };
        Self {
            seed,
            random: Random(seed),
            manner,
            begun: false,
        }
    }
}

impl Scheduler for Seeded {
    fn new_execution(&mut self) -> Option<Schedule> {
        let first = !std::mem::replace(&mut self.begun, true);
        first.then(|| Schedule::new(self.seed))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let Self { random, manner, .. } = self;
        match manner {
            Manner::Turns { stays } => {
                let stays = !is_yielding && random.below(16) < *stays;
                let can_go_on =
                    |current: &TaskId| runnable.iter().any(|task| task.id() == *current);
                let any = || runnable[random.below(runnable.len() as u64) as usize].id();
                Some(
                    current
                        .filter(|_| stays)
                        .filter(can_go_on)
                        .unwrap_or_else(any),
                )
            }
            Manner::Ranks { of_task, lowest } => {
                if let Some(current) = current
                    && (is_yielding || random.below(48) == 0)
                {
                    *lowest -= 1;
                    of_task.insert(current, *lowest);
                }
                let mut rank = |id| {
                    *of_task
                        .entry(id)
                        .or_insert_with(|| u64::MAX / 2 + random.next() / 2)
                };
                runnable
                    .iter()
                    .map(|task| task.id())
                    .max_by_key(|&id| rank(id))
            }
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.random.next()
    }
}
