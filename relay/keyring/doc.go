// Package keyring replaces the key that secrets are sealed with (relay/seal), on all nodes of a
// database.
//
// Job: say which key of the files is the current one; know which node has which keys; seal anew
// what an old key has sealed; and for an admin list, add, use and remove keys. The columns of
// sealed values belong to other packages, which describe them (seal.Column).
//
// A key goes through these states, each by a command of its own:
//
//   - Rotate writes it to the file of one machine: new. An admin copies the file to the others;
//     each node reads it within seconds, and records the keys that it has.
//   - Use makes it current, once every living node has it. The nodes follow within seconds; what
//     a slower one still seals with the old key, all can open. In the background they seal values
//     anew, each by one statement that changes it only if nobody else has.
//   - Remove takes the old key out of the file: an hour later, for a command or a login that
//     began before may have sealed with it; once every living node has the current key; and only
//     when it seals nothing.
//
// Invariants: nothing is sealed with a key that a living node lacks, unless an admin forces it; a
// key leaves a file only after nothing is sealed with it; each act is in the audit. One act at a
// time, by a lock on the table sealing_key.
//
// Crash: a key that Rotate wrote without a commit is found, and recorded, by the next Rotate or
// Use of it; Remove records what it is about to do, so a key that it left can be removed again.
//
// Failure: a node whose file lacks the current key, or cannot be read, seals with the last key
// that it knew, nothing if it started so, and logs what is wrong once; a value that no key opens
// stays as it is. A living node that has recorded nothing counts as one that lacks all keys.
package keyring
