package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
)

// RecipientPattern allows or denies recipients to a user, or to mail by one of its credentials.
type RecipientPattern struct {
	Credential int64  `json:"credential,omitempty"` // 0: whichever
	Allow      bool   `json:"allow"`                // else it denies
	Pattern    string `json:"pattern"`              // see CanonicalPattern; never NullSender
}

// Suppressed is what a credential does with a recipient that is suppressed for its user.
type Suppressed string

const (
	RefuseSuppressed Suppressed = "refuse" // at RCPT
	AcceptSuppressed Suppressed = "accept" // and fail it, by a notice
	IgnoreSuppressed Suppressed = "ignore" // send to it
)

// ErrSuppressed is a word that is none of them.
var ErrSuppressed = errors.New("not one of refuse, accept, ignore")

// recipientPattern is CanonicalPattern for recipients.
func recipientPattern(pattern string) (string, error) {
	if pattern == NullSender {
		return "", fmt.Errorf("%w: %q is no recipient", ErrPattern, pattern)
	}
	return CanonicalPattern(pattern)
}

// SetRecipients allows or denies recipients to a user, or to its mail by a credential (0: by any). A
// pattern that is there is changed. Errors: ErrName, ErrNotFound and ErrPattern, or of the database.
func (s *Store) SetRecipients(ctx context.Context, user string, credential int64, allow bool, patterns ...string) error {
	action := "recipient deny"
	if allow {
		action = "recipient allow"
	}
	return s.changeRecipients(ctx, user, credential, action, patterns, func(ctx context.Context, tx pgx.Tx, id int64, pattern string) error {
		_, err := tx.Exec(ctx, `
			insert into recipient_pattern (user_id, credential_id, allow, pattern) values ($1, nullif($2::bigint, 0), $3, $4)
			on conflict (user_id, coalesce(credential_id, 0), pattern) do update set allow = excluded.allow`, id, credential, allow, pattern)
		return err
	})
}

// RemoveRecipients removes such patterns. The error is ErrNotFound too if one is not there.
func (s *Store) RemoveRecipients(ctx context.Context, user string, credential int64, patterns ...string) error {
	return s.changeRecipients(ctx, user, credential, "recipient remove", patterns, func(ctx context.Context, tx pgx.Tx, id int64, pattern string) error {
		tag, err := tx.Exec(ctx, `
			delete from recipient_pattern where user_id = $1 and coalesce(credential_id, 0) = $2 and pattern = $3`, id, credential, pattern)
		if err == nil && tag.RowsAffected() == 0 {
			return notFound("no recipient pattern " + pattern)
		}
		return err
	})
}

func (s *Store) changeRecipients(ctx context.Context, user string, credential int64, action string, patterns []string,
	change func(ctx context.Context, tx pgx.Tx, id int64, pattern string) error) error {
	canonical := make([]string, len(patterns))
	for i, pattern := range patterns {
		var err error
		if canonical[i], err = recipientPattern(pattern); err != nil {
			return err
		}
	}
	slices.Sort(canonical) // two admins lock in one order
	detail := map[string]any{"patterns": canonical}
	if credential != 0 {
		detail["credential"] = credential
	}
	return s.change(ctx, user, audit.Deed{Action: action, Detail: detail}, func(ctx context.Context, tx pgx.Tx, id int64) error {
		if err := ownCredential(ctx, tx, id, credential); err != nil {
			return err
		}
		for _, pattern := range slices.Compact(canonical) {
			if err := change(ctx, tx, id, pattern); err != nil {
				return err
			}
		}
		return nil
	})
}

// ownCredential makes sure that a credential, unless it is 0, is a user's.
func ownCredential(ctx context.Context, tx pgx.Tx, user, credential int64) error {
	own := credential == 0
	if !own {
		err := tx.QueryRow(ctx, `select exists (select from credential where id = $1 and user_id = $2)`, credential, user).Scan(&own)
		if err != nil {
			return err
		}
	}
	if !own {
		return notFound(fmt.Sprintf("no credential %d", credential))
	}
	return nil
}

// Recipients returns all patterns of a user, those of its credentials last. The error is ErrName or
// ErrNotFound, or of the database.
func (s *Store) Recipients(ctx context.Context, user string) ([]RecipientPattern, error) {
	u, err := s.User(ctx, user)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rows, err := s.db.Query(ctx, `
		select coalesce(credential_id, 0), allow, pattern from recipient_pattern where user_id = $1
		order by credential_id nulls first, allow, pattern`, u.ID)
	if err != nil {
		return nil, fmt.Errorf("recipient patterns of %s: %w", u.Name, err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[RecipientPattern])
}

// SetSuppressed sets what a credential does with suppressed recipients. Errors: ErrNotFound and
// ErrSuppressed, or of the database.
func (s *Store) SetSuppressed(ctx context.Context, credential int64, what Suppressed) (Credential, error) {
	if what != RefuseSuppressed && what != AcceptSuppressed && what != IgnoreSuppressed {
		return Credential{}, fmt.Errorf("%q is %w", what, ErrSuppressed)
	}
	c, err := s.Credential(ctx, credential)
	if err != nil {
		return c, err
	}
	d := audit.Deed{Action: "credential set", Detail: map[string]any{"credential": credential, "suppressed": what}}
	return c, s.change(ctx, c.User, d, func(ctx context.Context, tx pgx.Tx, _ int64) error {
		_, err := tx.Exec(ctx, `update credential set suppressed = $2, updated_at = now() where id = $1`, credential, what)
		return err
	})
}
