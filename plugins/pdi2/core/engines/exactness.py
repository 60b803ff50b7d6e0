"""Settings that keep answers complete and exact under any ClickHouse user's profile, and what a profile may forbid.

A profile's limits on rows and columns are lifted, because each statement has its own memory limit. A profile's time
limit is kept: a statement that runs into it is cut smaller.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LIMITS = (  # 0 means no limit
    "limit",
    "offset",
    "max_rows_to_read",
    "max_bytes_to_read",
    "max_rows_to_read_leaf",
    "max_bytes_to_read_leaf",
    "max_rows_to_group_by",
    "max_rows_to_sort",
    "max_bytes_to_sort",
    "max_result_rows",
    "max_result_bytes",
    "max_rows_in_set",
    "max_bytes_in_set",
    "max_rows_in_join",
    "max_bytes_in_join",
    "max_rows_in_distinct",
    "max_bytes_in_distinct",
    "max_rows_to_transfer",
    "max_bytes_to_transfer",
    "max_columns_to_read",
    "max_temporary_columns",
    "max_temporary_non_const_columns",
)
OVERFLOW_MODES = (
    "read_overflow_mode",
    "read_overflow_mode_leaf",
    "group_by_overflow_mode",
    "sort_overflow_mode",
    "result_overflow_mode",
    "timeout_overflow_mode",
    "timeout_overflow_mode_leaf",
    "set_overflow_mode",
    "join_overflow_mode",
    "distinct_overflow_mode",
    "transfer_overflow_mode",
)
WHOLE: dict[str, Any] = {
    **dict.fromkeys(LIMITS, 0),
    **dict.fromkeys(OVERFLOW_MODES, "throw"),
    "additional_table_filters": {},
    "additional_result_filter": "",
    "use_query_cache": 0,
    "final": 0,
    "output_format_native_encode_types_in_binary_format": 0,
}
"""With these settings an answer is complete or an error. So the query that reads the server's settings has them too."""
LATE = (
    "use_query_cache",
    "final",
    "timeout_overflow_mode_leaf",
    "output_format_native_encode_types_in_binary_format",
)
"""The settings in WHOLE that ClickHouse 22.12 does not have."""
USUAL: dict[str, Any] = {
    "aggregate_functions_null_for_empty": 0,
    "empty_result_for_aggregation_by_empty_set": 0,
    "group_by_use_nulls": 0,
    "join_use_nulls": 0,
    "join_default_strictness": "ALL",
    "transform_null_in": 0,
    "prefer_column_name_to_alias": 0,
    "extremes": 0,
    "data_type_default_nullable": 0,
    "allow_experimental_lightweight_delete": 1,
    "apply_deleted_mask": 1,
    "apply_patch_parts": 1,
    "apply_mutations_on_fly": 0,
    "force_primary_key": 0,
    "force_index_by_date": 0,
    "force_data_skipping_indices": "",
    "force_optimize_projection": 0,
    "min_execution_speed": 0,
    "min_execution_speed_bytes": 0,
    "max_estimated_execution_time": 0,
    "max_subquery_depth": 100,
    "max_ast_depth": 1000,
    "max_ast_elements": 50_000,
    "max_expanded_ast_elements": 500_000,
    "max_table_size_to_drop": 50_000_000_000,
    "join_algorithm": "default",
    "max_partitions_per_insert_block": 0,
    "describe_include_subcolumns": 0,
    "describe_compact_output": 0,
    "describe_include_virtual_columns": 0,
    "enable_global_with_statement": 1,
    "input_format_native_decode_types_in_binary_format": 0,
    "input_format_tsv_enum_as_number": 0,
    "show_create_query_identifier_quoting_rule": "when_necessary",
    "show_create_query_identifier_quoting_style": "Backticks",
}
"""ClickHouse's own defaults that the statements rely on, to mean what they should or to run at all. One differs: an
insert for many teams may reach more than 100 partitions."""
AT_LEAST = {
    "max_subquery_depth",
    "max_ast_depth",
    "max_ast_elements",
    "max_expanded_ast_elements",
    "max_table_size_to_drop",
}
"""Of these, a greater value serves too."""
HASH_JOINS = {"default", "hash", "parallel_hash"}
OF_TABLES = (
    "data_type_default_nullable",
    "max_table_size_to_drop",
    "max_ast_depth",
    "max_ast_elements",
    "max_expanded_ast_elements",
)
"""The settings that matter when a table is created or dropped."""


@dataclass(frozen=True)
class Setting:
    """What system.settings says about a setting for this user: its value and its bounds (None: no bound)."""

    value: str
    least: str | None
    most: str | None
    fixed: bool

    def is_at(self, wanted: Any) -> bool:
        return self.value == _text(wanted)

    def refusal(self, wanted: Any) -> str | None:
        """How the profile forbids this value; None if it does not, or if the setting already has the value."""
        if self.is_at(wanted):
            return None
        if self.fixed:
            return f"fixed at {self.value or 'nothing'}"
        if self.least is not None and _below(wanted, self.least):
            return f"at least {self.least}"
        if self.most is not None and _below(self.most, wanted):
            return f"at most {self.most}"
        return None


def refusals(known: Mapping[str, Setting], wanted: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """By setting, why the user may not set the value that a statement needs."""
    found = {}
    for name, value in wanted:
        if name in known and (why := known[name].refusal(value)):
            found[name] = f"{name} is {why} and has to be {_text(value) or 'empty'}"
    return found


def suffices(name: str, setting: Setting, wanted: Any) -> bool:
    """Whether the server's own value serves as well as the wanted one."""
    if name in AT_LEAST and (_below(wanted, setting.value) or (name, setting.value) == ("max_table_size_to_drop", "0")):
        return True
    if name == "join_algorithm" and HASH_JOINS & set(setting.value.split(",")):
        return True
    return setting.is_at(wanted)


def _text(value: Any) -> str:
    return str(int(value) if isinstance(value, bool) else value)


def _below(one: Any, other: Any) -> bool:
    try:
        return float(one) < float(other)
    except ValueError:
        return False
