package account

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"postern/auth"
	"postern/cmd/postern/screen"
)

// Credential is a credential for programs.
type Credential struct {
	ID           int64      `json:"id"`
	UserName     string     `json:"username"`
	Secret       string     `json:"secret,omitempty"` // only when it was just made
	Kind         string     `json:"kind"`
	Label        string     `json:"label"`
	State        string     `json:"state"` // active, expired or revoked
	ExpiresAt    *time.Time `json:"expires_at"`
	Networks     []string   `json:"networks"`
	LastUsedAt   *time.Time `json:"last_used_at"`
	LastUsedAddr string     `json:"last_used_addr,omitempty"`
	LastUsedTLS  string     `json:"last_used_tls,omitempty"`
	CreatedAt    time.Time  `json:"created_at"`
	RevokedAt    *time.Time `json:"revoked_at"`
	Suppressed   string     `json:"suppressed"` // refuse, accept or ignore
	Duplicates   string     `json:"duplicates"` // how long copies of mail are recognised: "10m", "off" or "default"
}

// CredentialOf is a credential; secret is the one that was just made, "" for none.
func CredentialOf(c auth.Credential, secret string) Credential {
	v := Credential{
		ID: c.ID, UserName: c.User, Secret: secret, Kind: string(c.Kind), Label: c.Label, State: c.State(time.Now()),
		ExpiresAt: screen.OrNull(c.Expires), Networks: screen.Each(c.Networks, netip.Prefix.String), LastUsedAt: screen.OrNull(c.LastUse.At), LastUsedTLS: c.LastUse.TLS,
		CreatedAt: c.CreatedAt, RevokedAt: screen.OrNull(c.RevokedAt), Suppressed: string(c.Suppressed), Duplicates: DuplicatesText(c.Duplicates),
	}
	if c.LastUse.Addr.IsValid() {
		v.LastUsedAddr = c.LastUse.Addr.String()
	}
	return v
}

// CredentialsOf are those of a list.
func CredentialsOf(list []auth.Credential) []Credential {
	return screen.Each(list, func(c auth.Credential) Credential { return CredentialOf(c, "") })
}

// CredentialHead is above the columns of Row.
func CredentialHead() []string {
	return []string{"ID", "KIND", "LABEL", "STATE", "EXPIRES", "NETWORKS", "LAST USE", "FROM", "DUPLICATES"}
}

// Row is it in a table.
func (c Credential) Row() []string {
	return []string{strconv.FormatInt(c.ID, 10), c.Kind, screen.OrDash(c.Label), c.State, screen.Moment(c.ExpiresAt),
		screen.OrDash(strings.Join(c.Networks, " ")), screen.Moment(c.LastUsedAt), screen.OrDash(c.LastUsedAddr), c.Duplicates}
}
