// Package health has the judgements that a running node's /readyz and 'postern check'
// share: what is wrong with a certificate, with room on a disk, with the database or with
// a node's lease, how bad that is, and what to do about it. It asks nobody but the file
// system; what it judges comes as values.
package health
