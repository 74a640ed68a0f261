// Package owned opens files and folders by their owner and mode, not by their content: a
// program that root runs must not trust, truncate or remove what another user of the
// machine put where it looks.
//
// Two rules, with one text each:
//
//   - A file from the configuration ([Read]) is a regular file that not everybody may
//     change. One with a secret ([ReadSecret]) is one that not everybody may read. Links are
//     followed, for Kubernetes mounts its secrets as links; what counts is the file that was
//     opened. Its group is the choice of whoever set it: nothing is said about that.
//   - A folder that we write to ([Open]) belongs to us, and nobody else may put another one in
//     its place: see [Path]. In it, files are opened by [OpenFile], which follows no link.
//
// "Others" are all users but root and the process's own. A folder with the sticky bit,
// such as /tmp, may stand above ours: there nobody but the owner moves a thing, so what
// counts is whose the next one below it is.
package owned
