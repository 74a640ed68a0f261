// Package dkimtest has what tests of signatures need: keys in memory with the records that publish
// them, messages that are hard to sign, and foreign verifiers.
package dkimtest
