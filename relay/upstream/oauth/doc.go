// Package oauth gets the access tokens with which an upstream's account is proved by XOAUTH2
// or OAUTHBEARER, and shares each of them with all nodes through the database.
//
// Job: ask Microsoft or Google for tokens by a [Grant] (client credentials, a service
// account's key, a refresh token), keep them in the table upstream_token, renew them before
// they expire, and carry them in the two mechanisms. It knows nothing about hosts, messages
// and routes.
//
// Invariants: of all nodes one asks for a token, by a lease on its row that the database's
// clock ends; no connection and no transaction is held while an authority is talked to; a
// token is used only once it is stored, and a rotated refresh token is stored in the same
// write; a token belongs to the settings that it was got with, so that a changed account never
// uses a former one's; no secret and no token is in an error or a log; only the hosts of
// [Known] are talked to.
//
// Failure: a token that is still valid is used while no new one can be had; the next attempt
// follows after [CoolDown]. An error is a [Fault]: a sentence with what to do.
package oauth
