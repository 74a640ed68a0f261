package account

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"postern/auth"
	"postern/cmd/postern/handout"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/story"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

// User is a user for programs.
type User struct {
	Name           string     `json:"name"`
	Enabled        bool       `json:"enabled"`
	DisabledReason string     `json:"disabled_reason,omitempty"`
	HasPassword    bool       `json:"has_password"`
	Credentials    int        `json:"credentials"` // that work, the password with them
	Senders        []string   `json:"senders"`
	Resend         []string   `json:"resend,omitempty"` // those by which others' mail may be resent
	NoDefaults     bool       `json:"no_default_limits,omitempty"`
	InDoubt        string     `json:"in_doubt,omitempty"` // retry, hold or notice
	LastUsedAt     *time.Time `json:"last_used_at"`
	CreatedAt      time.Time  `json:"created_at"`
	Password       string     `json:"password,omitempty"` // only when it was just generated
}

// UserOf is a user; shown is the password that was just generated, "" for none.
func UserOf(u auth.User, shown string) User {
	return User{
		Name: u.Name, Enabled: u.Enabled, DisabledReason: u.DisabledReason, HasPassword: u.HasPassword, Credentials: u.Credentials,
		Senders: Senders(u), Resend: u.Resend, NoDefaults: u.NoDefaults, InDoubt: u.InDoubt, LastUsedAt: screen.OrNull(u.LastUsedAt), CreatedAt: u.CreatedAt, Password: shown,
	}
}

// Senders is what a user may send as: without a pattern for addresses, the
// name, when that is an address.
func Senders(u auth.User) []string {
	set := slices.ContainsFunc(u.Senders, func(p string) bool { return p != auth.NullSender })
	if set || !strings.Contains(u.Name, "@") {
		return slices.Concat([]string{}, u.Senders) // [] in JSON, not null
	}
	return append([]string{u.Name}, u.Senders...)
}

// SendersText is Senders for people.
func SendersText(u auth.User) string {
	return screen.OrDash(strings.Join(Senders(u), ", "))
}

// State says whether the user may log in, and why not.
func (u *User) State() string {
	if u.Enabled {
		return "enabled"
	}
	return "disabled" + screen.Colon(u.DisabledReason)
}

// Shown is everything about a user that one look should tell.
type Shown struct {
	User
	Logins   []Credential       `json:"logins"`
	Holds    []queue.UserHold   `json:"holds"`
	Queue    map[desk.State]int `json:"queue"` // recipients
	Settings handout.Settings   `json:"settings"`
}

// Print prints it, without the settings. Errors: out's.
func (s *Shown) Print(out io.Writer) error {
	t := screen.Table{Head: []string{"USER", screen.Printable(s.Name)}}
	t.Add("state", s.State())
	t.Add("may send as", screen.OrDash(strings.Join(s.Senders, ", ")))
	if s.NoDefaults {
		t.Add("limits", "exempt from the default ones")
	}
	if s.InDoubt != "" {
		t.Add("in doubt", s.InDoubt)
	}
	t.Add("since", screen.LocalTime(s.CreatedAt))
	var mail []string
	for _, state := range story.States() {
		if n := s.Queue[state]; n > 0 {
			mail = append(mail, screen.Count(n, "recipient")+" "+string(state))
		}
	}
	t.Add("in the queue", screen.OrDash(strings.Join(mail, ", ")))
	for _, h := range s.Holds {
		what := "all its mail"
		if h.CredentialID != 0 {
			what = fmt.Sprintf("mail by credential %d", h.CredentialID)
		}
		t.Add("on hold", fmt.Sprintf("%s, since %s by %s: %s", what, screen.LocalTime(h.MadeAt), h.MadeBy, screen.OrDash(h.Reason)))
	}
	if err := t.Print(out); err != nil || len(s.Logins) == 0 {
		return err
	}
	fmt.Fprintln(out)
	logins := screen.TableOf(CredentialHead(), Credential.Row, s.Logins)
	return logins.Print(out)
}

// Sender is a pattern as it is listed.
type Sender struct {
	Pattern string `json:"pattern"`
	From    string `json:"from"` // where it comes from
	Resend  bool   `json:"resend"`
}

// SendersOf are the patterns of a user, with where they come from.
func SendersOf(u auth.User) []Sender {
	views := []Sender{}
	for _, p := range Senders(u) {
		v := Sender{Pattern: p, From: "set", Resend: slices.Contains(u.Resend, p)}
		if !slices.Contains(u.Senders, p) {
			v.From = "the user's name"
		}
		views = append(views, v)
	}
	return views
}
