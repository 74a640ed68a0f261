-- Users, what they may send as, and their credentials. Owned by the package auth.

-- One row for each account. version rises with every change to the user, the
-- sender patterns or the credentials: what a node has cached of another version is void.
create table app_user (
    id              bigint generated always as identity primary key,
    name            text collate "C" not null,          -- canonical, see auth.CanonicalName
    enabled         boolean not null default true,
    disabled_reason text not null default '',           -- for admins; never told to clients
    max_size        bigint,                             -- octets of a message; null: the server's limit
    max_recipients  integer,                            -- of a message; null: the server's limit
    version         bigint not null default 1,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint app_user_name_length check (octet_length(name) between 1 and 255),
    constraint app_user_max_size check (max_size > 0),
    constraint app_user_max_recipients check (max_recipients > 0)
);
-- AUTH finds the user by name; "user list" pages by it.
create unique index app_user_name on app_user (name);

-- Addresses that a user may send as: a@b, *@b or *@*.b, the domain canonical.
create table sender_pattern (
    user_id    bigint not null references app_user (id) on delete cascade,
    pattern    text collate "C" not null,
    created_at timestamptz not null default now(),
    primary key (user_id, pattern),                     -- AUTH reads a user's patterns
    constraint sender_pattern_length check (octet_length(pattern) between 3 and 320)
);

-- What proves to be a user. A 'password' is chosen by a person and its hash is in
-- PHC form, slow; a 'secret' is generated, is found by its id and checked by a fast
-- keyed hash.
create table credential (
    id               bigint generated always as identity primary key,
    user_id          bigint not null references app_user (id) on delete cascade,
    kind             text not null,
    hash             text not null,
    label            text not null default '',
    allowed_networks cidr[] not null default '{}',      -- empty: from anywhere
    expires_at       timestamptz,
    revoked_at       timestamptz,
    last_used_at     timestamptz,
    last_used_addr   inet,
    last_used_tls    text,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    constraint credential_kind check (kind in ('password', 'secret'))
);
-- AUTH reads the one live password of a user: a second one would cost every wrong
-- guess a second slow hash.
create unique index credential_live_password on credential (user_id)
    where kind = 'password' and revoked_at is null;
-- "credential list USER", and the cascade from app_user.
create index credential_user on credential (user_id);
