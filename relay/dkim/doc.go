// Package dkim signs messages (RFC 6376, RFC 8463). BodyHash hashes the body while it passes by;
// Sign makes the DKIM-Signature fields of a header section and that hash, and Find chooses the keys
// by the author's domain.
//
// It reads nothing twice, keeps no state, and knows no database: relay/dkim/keys has the keys.
// Signatures are relaxed/relaxed and cover the whole body (no l=). The same header section, hash,
// keys and time give the same octets, so a retry sends the same signature.
package dkim
