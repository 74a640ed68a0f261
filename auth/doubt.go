package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"postern/auth/audit"
)

// ErrDoubtPolicy is the error of a policy that is not one of DoubtPolicies.
var ErrDoubtPolicy = errors.New("not a policy for mail in doubt")

// DoubtPolicies are what can become of mail that may have been delivered (docs/delivery.md): it is
// tried again, held for a person, or its sender is told. The first one is the default. They are those
// of is_doubt_policy in the schema.
func DoubtPolicies() []string { return []string{"retry", "hold", "notice"} }

// CheckDoubtPolicy returns ErrDoubtPolicy unless the policy is known, or "".
func CheckDoubtPolicy(policy string) error {
	if list := DoubtPolicies(); policy != "" && !slices.Contains(list, policy) {
		return fmt.Errorf("%q is %w: use %s, or '' for the default", policy, ErrDoubtPolicy, strings.Join(list, ", "))
	}
	return nil
}

// SetInDoubt sets the policy for a user's mail in doubt, which goes before that of its upstream; ""
// leaves it to the upstream. The error is ErrName, ErrNotFound or ErrDoubtPolicy, or of the database.
func (s *Store) SetInDoubt(ctx context.Context, name, policy string) error {
	if err := CheckDoubtPolicy(policy); err != nil {
		return err
	}
	d := audit.Deed{Action: "user set", Detail: map[string]any{"in_doubt": policy}}
	return s.change(ctx, name, d, func(ctx context.Context, tx pgx.Tx, id int64) error {
		_, err := tx.Exec(ctx, `update app_user set in_doubt = $2 where id = $1`, id, policy)
		return err
	})
}
