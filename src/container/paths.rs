//! Names of files as Windows writes them, in images that are read elsewhere.

/// A path with `/`: without a drive, a volume's name, or what says that it is taken as it stands. What was absolute stays so.
pub(super) fn from_windows(path: &str) -> Vec<u8> {
    let path = path.trim_end_matches('\0').replace('\\', "/");
    let rest = ["//?/", "//./"].iter().find_map(|p| path.strip_prefix(p)).unwrap_or(&path);
    // `Volume{...}/a` and `C:/a` are `/a`; `C:a` is relative to what nobody knows any more.
    let volume = rest.get(..6).is_some_and(|v| v.eq_ignore_ascii_case("volume"));
    let rest = match rest.split_once('/') {
        Some((_, below)) if volume => return [b"/", below.as_bytes()].concat(),
        _ => rest,
    };
    let mut chars = rest.chars();
    let rest = match (chars.next(), chars.next()) {
        (Some(drive), Some(':')) if drive.is_ascii_alphabetic() => chars.as_str(),
        _ => rest,
    };
    let mut rest = rest;
    while let Some(less) = rest.strip_prefix("./") {
        rest = less.trim_start_matches('/');
    }
    rest.as_bytes().to_vec()
}

/// A path of a format that runs on Windows and elsewhere: one of Windows where it has a `\` and no `/`.
pub(super) fn from_either(path: &str) -> Vec<u8> {
    if path.contains('\\') && !path.contains('/') { from_windows(path) } else { path.as_bytes().to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_windows() {
        for (windows, want) in [
            (".\\base.vhd", "base.vhd"),
            ("base.vhd", "base.vhd"),
            ("..\\a\\base.vhd", "../a/base.vhd"),
            ("C:\\VMs\\base.vhd", "/VMs/base.vhd"),
            ("\\\\?\\C:\\VMs\\base.vhdx", "/VMs/base.vhdx"),
            ("\\\\?\\Volume{11-22}\\VMs\\base.vhdx", "/VMs/base.vhdx"),
            ("\\\\server\\share\\base.vhd", "//server/share/base.vhd"),
            (".\\.\\sub\\b.vhd", "sub/b.vhd"),
            ("é:x", "é:x"),
            ("", ""),
        ] {
            assert_eq!(String::from_utf8(from_windows(windows)).unwrap(), want, "{windows}");
        }
        assert_eq!(from_either("a/b\\c"), b"a/b\\c");
        assert_eq!(from_either("C:\\b\\c"), b"/b/c");
    }
}
