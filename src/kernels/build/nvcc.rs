//! The compiler of the kernels: where it is, and many runs of it side by side.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A toolkit, and where compiled code is kept between builds if the caller wants that.
pub struct Nvcc {
    /// The toolkit's directory.
    #[cfg_attr(not(feature = "cutlass"), allow(dead_code))]
    pub home: PathBuf,
    program: PathBuf,
    pub version: String,
    /// `FP8RT_KERNEL_CACHE`.
    cache: Option<PathBuf>,
}

/// One cubin to be made.
pub struct Job {
    pub source: PathBuf,
    pub options: Vec<String>,
    pub cubin: PathBuf,
    /// Bytes that the registers may spill; a larger number fails the build. `None`: not looked at.
    pub most_spill: Option<u32>,
    /// Rough cost, so that the longest runs begin first.
    pub seconds: u32,
}

impl Nvcc {
    /// The toolkit of `CUDA_HOME`, or the one that `make gpu` unpacks.
    pub fn find(root: &Path) -> Nvcc {
        let home = env::var_os("CUDA_HOME").map_or(root.join(".tools/cuda/nvidia/cu13"), PathBuf::from);
        let program = home.join("bin/nvcc");
        assert!(program.exists(), "no {}: set CUDA_HOME, or use `make gpu`, which brings a toolkit", program.display());
        let cache = env::var_os("FP8RT_KERNEL_CACHE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let output = Command::new(&program).arg("--version").output().expect("nvcc runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
        Nvcc { version: release.unwrap_or("unknown").to_owned(), home, program, cache }
    }

    /// Runs them all, as many at once as cargo allows.
    pub fn compile(&self, mut jobs: Vec<Job>) {
        jobs.sort_by_key(|job| job.seconds);
        let jobs = Mutex::new(jobs);
        let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let job = jobs.lock().expect("a compilation failed").pop();
                        let Some(job) = job else { break };
                        self.one(&job);
                    }
                });
            }
        });
    }

    fn one(&self, job: &Job) {
        let kept = self.cache.as_ref().map(|cache| cache.join(format!("{:016x}.cubin", self.key(job))));
        if kept.as_ref().is_some_and(|kept| fs::copy(kept, &job.cubin).is_ok()) {
            return;
        }
        let report = self.run(job);
        if let Some(most) = job.most_spill {
            let spill = spill(&report);
            let name = job.cubin.display();
            assert!(spill <= most, "{name} spills {spill} bytes of registers, {most} are expected:\n{report}");
        }
        if let Some(kept) = kept {
            keep(&job.cubin, &kept);
        }
    }

    fn run(&self, job: &Job) -> String {
        let mut command = Command::new(&self.program);
        command.arg("-cubin").arg("-Xptxas").arg("-v").args(&job.options).arg(&job.source).arg("-o").arg(&job.cubin);
        let output = command.output().expect("nvcc runs");
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "nvcc failed on {} {:?}:\n{report}", job.source.display(), job.options);
        report
    }

    /// What decides the cubin: compiler, options and our own sources. A package's headers are named by their path alone,
    /// which has the version in it.
    fn key(&self, job: &Job) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.version, &job.options, &job.source, job.most_spill).hash(&mut hasher);
        let directory = job.source.parent().expect("a file in a directory");
        let mut sources: Vec<_> = fs::read_dir(directory).expect("a directory").flatten().map(|e| e.path()).collect();
        sources.sort();
        for source in sources.iter().filter(|path| path.extension().is_some_and(|e| e == "cuh" || e == "h")) {
            fs::read(source).expect("a source file").hash(&mut hasher);
        }
        fs::read(&job.source).expect("a source file").hash(&mut hasher);
        hasher.finish()
    }
}

/// Bytes that ptxas says it spilled, the largest of the file's kernels.
fn spill(report: &str) -> u32 {
    let before = report.split(" bytes spill stores");
    let numbers = before.filter_map(|text| text.rsplit([' ', ',', '\n']).next()?.parse().ok());
    numbers.max().unwrap_or(0)
}

/// Beside, then renamed: another build may be looking.
fn keep(cubin: &Path, kept: &Path) {
    let partial = kept.with_extension(format!("{}", std::process::id()));
    let copied = fs::create_dir_all(kept.parent().expect("a file in a directory"))
        .and_then(|()| fs::copy(cubin, &partial))
        .and_then(|_| fs::rename(&partial, kept));
    if let Err(error) = copied {
        println!("cargo:warning={} was not kept: {error}", kept.display());
    }
}
