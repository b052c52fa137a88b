//! Memory that is not needed at the moment, given back to the kernel.

use std::io;

/// A program with its libraries has about thirty.
const MAPPINGS_MAX: usize = 64;

/// Whose pages are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The program and its libraries: of a process with one thread alone, for another thread may be
    /// loading a library, whose first mapping looks unchanged until its data are laid over it.
    ProgramAndLibraries,
    /// The program, whose mappings stay what they are from its start to its end.
    Program,
}

/// Gives back what an idle process does not need: freed memory, and pages of the program that are in the file
/// anyway and come back by themselves at their next use.
pub fn give_back(of: Of) {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc's own function, no arguments that could be wrong.
    unsafe {
        libc::malloc_trim(0);
    }
    let mut ranges = [(0, 0); MAPPINGS_MAX];
    let count = clean_file_mappings(of, &mut ranges).unwrap_or(0);
    // From here to the next wait as little as possible is touched: it would come back.
    for &(start, length) in &ranges[..count] {
        // Without the first advice one needed page brings 2 MiB with it.
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTNEED] {
            // SAFETY: the range is one read-only mapping of a file without a changed page, so that the kernel
            // reads the same bytes again when they are needed. It still is one: see `Of`.
            unsafe { libc::madvise(start as *mut libc::c_void, length, advice) };
        }
    }
}

/// Read-only mappings of files in which this process has changed nothing (relocated pages count as changed).
fn clean_file_mappings(of: Of, found: &mut [(usize, usize); MAPPINGS_MAX]) -> io::Result<usize> {
    use std::io::BufRead;
    let program = std::fs::read_link("/proc/self/exe")?.into_os_string().into_string();
    let program = program.map_err(|_| io::Error::other("the program's path is no text"))?;
    let within = |path: &str| of == Of::ProgramAndLibraries || path == program;
    let mut count = 0;
    let mut candidate = None;
    for line in io::BufReader::with_capacity(4096, std::fs::File::open("/proc/self/smaps")?).lines()
    {
        let line = line?;
        if let Some(changed) = line.strip_prefix("Anonymous:") {
            if let (Some(range), "0 kB") = (candidate.take(), changed.trim())
                && let Some(place) = found.get_mut(count)
            {
                *place = range;
                count += 1;
            }
        } else if let Some(range) = read_only_file(&line, within) {
            candidate = range;
        }
    }
    Ok(count)
}

/// `None` for a line that is no mapping's first; else its range if it is a file's and not writable.
fn read_only_file(line: &str, within: impl Fn(&str) -> bool) -> Option<Option<(usize, usize)>> {
    let path = line.find('/').map_or("", |at| &line[at..]);
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) =
        (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let access = words.next()?;
    let file = words.nth(3).is_some_and(|word| word.starts_with('/')) && within(path);
    Some((file && access.starts_with('r') && !access.contains('w')).then_some((start, end - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_read_only_files_are_given_back() {
        let check = |line: &str, expected| {
            assert_eq!(read_only_file(line, |_| true), expected, "{line}");
        };
        check("1000-3000 r-xp 00000000 00:01 5   /bin/skep", Some(Some((0x1000, 0x2000))));
        check("1000-3000 rw-p 00000000 00:01 5   /bin/skep", Some(None));
        check("1000-3000 r--p 00000000 00:00 0   [vvar]", Some(None));
        check("Rss:                 4 kB", None);
        let line = "1000-3000 r-xp 00000000 00:01 5   /old bin/skep (deleted)";
        assert_eq!(read_only_file(line, |path| path == "/lib/libc.so.6"), Some(None));
        let range = Some(Some((0x1000, 0x2000)));
        assert_eq!(read_only_file(line, |path| path == "/old bin/skep (deleted)"), range);
    }

    #[test]
    fn a_program_goes_on_after_it_has_lost_its_pages() {
        let count = |of| clean_file_mappings(of, &mut [(0, 0); MAPPINGS_MAX]).unwrap();
        give_back(Of::Program);
        assert!(count(Of::Program) > 0);
        assert!(count(Of::ProgramAndLibraries) > count(Of::Program));
    }
}
