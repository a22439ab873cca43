"""The budget of chat templates: what loops or leaps is stopped after a number of steps; conversations are not."""

from __future__ import annotations

import json
import subprocess
import sys

import jinja2.sandbox
import pytest

from edgelm.errors import ChatTemplateError
from edgelm.text.chat_template import MAX_SOURCE, ChatTemplate
from edgelm.text.template_environment import MAX_TOKENS
from edgelm.text.template_sandbox import MAX_NODES

MESSAGES = [{"role": "user", "content": "Hello"}]
NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
DEEP = "{% set ns = namespace(x=[1]) %}{% for i in range(900) %}{% set ns.x = [ns.x] %}{% endfor %}"
LONG = "{% set long = ('ab<' * 100000) %}"

# One row each for a way to take time or memory without end. "{% if ... %}{% endif %}" computes without writing.
BOMBS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that skip all": "{% for a in range(9999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a loop of many statements": "{% for i in range(9999) %}" + "{% set x = [i, i] %}" * 300 + "{% endfor %}",
    "a loop of many attributes": "{% set ns = namespace(x=1) %}"
    "{% for i in range(9999) %}" + "{% set ns.x = ns.x %}" * 99 + "{% endfor %}",
    "a loop of many elements": "{% for i in range(9999) %}" + "{% set x = messages[0] %}" * 99 + "{% endfor %}",
    "a loop of many names without a value": "{% for i in range(9999) %}" + "{% set x = y %}" * 99 + "{% endfor %}",
    "a loop of many blocks": "{% for i in range(9999) %}"
    + "".join(f"{{% block b{i} %}}{{% endblock %}}" for i in range(99))
    + "{% endfor %}",
    **{
        f"a loop of many {name} that are kept": "{% set ns = namespace(x=[]) %}"
        "{% for i in range(99999) %}{% set ns.x = [ns.x" + f", {kept}" * 99 + "] %}{% endfor %}"
        for name, kept in {"lists": "[]", "dicts": "{1: 1}", "methods": "''.format", "names": "i.y"}.items()
    },
    "a loop of a long branch": "{% for i in range(99999) %}{% if true %}"
    + "{% set x = i %}" * 300
    + "{% endif %}{% endfor %}",
    "long range as a list": "{% for a in range(9999) %}{% set x = range(99999) | list %}{% endfor %}",
    "product": "{{ 'x' * 10 ** 9 }}",
    "product, reversed": "{{ 10 ** 9 * 'x' }}",
    "product of a list": "{% set x = [1] * 10 ** 9 %}",
    "product in a constant": "{% set x = 'x' * 999999999 %}",
    "powers": "{{ 9 ** 99999999 }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "quotients": "{% set n = ('f' * 999999) | int(0, 16) %}{% for i in range(99) %}{% set x = n // 7 %}{% endfor %}",
    "remainders by a test": "{% set n = ('f' * 999999) | int(0, 16) %}{% set x = n is divisibleby n - 1 %}",
    "shift by round": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "doubling by +": "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling without a loop": "{% set x = 'x' %}" + "{% set x = x ~ x %}" * 60,
    "doubling a list": "{% set ns = namespace(x=[1]) %}"
    "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by a set block": "{% set x = 'x' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "doubling by join": "{% set ns = namespace(x='x') %}"
    "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
    "doubling by replace": "{% set ns = namespace(x='x') %}"
    "{% for i in range(60) %}{% set ns.x = ns.x|replace('x', 'xx') %}{% endfor %}",
    "doubling by a method": "{% set ns = namespace(x='x') %}"
    "{% for i in range(60) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
    "doubling by format": "{% set ns = namespace(x='x') %}"
    "{% for i in range(60) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "doubling by %": "{% set ns = namespace(x='x') %}"
    "{% for i in range(60) %}{% set ns.x = '%(a)s%(a)s' % {'a': ns.x} %}{% endfor %}",
    "many times one text by %": LONG + "{% set x = ('%(a)s' * 100000) % {'a': long} %}",
    "many times one text by format": LONG + "{% set x = ('{0}' * 100000).format(long) %}",
    "many times one text by replace": LONG + "{% set x = long.replace('', long) %}",
    "many times one text by join": LONG + "{% set x = long.join(long) %}",
    "many times one text by the filter": LONG + "{% set x = (long | list) | join(long) %}",
    "many times one text by the filter, of a number": LONG + "{% set x = ('1' * 3000) | replace(1, long) %}",
    "many times one text by the filter, of a list": LONG + "{% set x = (['a'] * 3000) | replace('a', long) %}",
    "many times one list by the filter": LONG + "{% set x = range(3000) | join([long]) %}",
    "many times one text by the format filter": LONG + "{% set x = ['%(a)s' * 3000] | format(a=long) %}",
    "many times one number": "{% set n = ('f' * 99999) | int(0, 16) %}{% set x = ('%(n)x' * 3000) % {'n': n} %}",
    "wide %": "{{ '%1000000000d' % 1 }}",
    "wide % by a star": "{{ '%*d' % (1000000000, 1) }}",
    "wide % of a named value": "{{ '%(n)1000000000d' % {'n': 1} }}",
    "wide % of a name with parentheses": "{{ '%((n)m)1000000000d' % {'(n)m': 1} }}",
    "wide % by a test": "{% set x = '%1000000000d' is odd or '%1000000000d' is divisibleby 3 %}",
    "wide % by another test": "{% set x = '%1000000000d' is even %}",
    "wide format of a key with braces": "{{ '{a[}]:{b}}'.format(a={'}': 1}, b=1000000000) }}",
    "wide format": "{{ '{:>1000000000}'.format('x') }}",
    "wide format inside": "{{ '{:{w}}'.format('x', w=1000000000) }}",
    "wide format of a mapping": "{{ '{:{w}}'.format_map({'': 'x', 'w': 1000000000}) }}",
    "wide format of a mapping, by a filter": "{{ ('{a:{w}}' | attr('format_map'))({'a': 'x', 'w': 1000000000}) }}",
    "wide format of a mapping, of a safe text": "{{ ('{a:{w}}' | safe).format_map({'a': 1, 'w': 1000000000}) }}",
    "wide format filter": "{{ '%1000000000d' | format(1) }}",
    "padding": "{{ 'x'.ljust(1000000000) }}",
    "centre": "{{ 'x' | center(1000000000) }}",
    "indentation": "{{ ('x\n' * 9999) | indent(99999) }}",
    "indentation of other lines": "{{ ('x\\v' * 9999) | indent(99999) }}",
    "indentation by a text": LONG + "{{ ('x\n' * 9999) | indent(long) }}",
    "JSON indented": "{{ [1, [2]] | tojson(indent=1000000000) }}",
    "JSON separated": LONG + "{{ ([1] * 1000) | tojson(separators=(long, long)) }}",
    "deep JSON": DEEP + "{% set x = (ns.x * 20000) | tojson(indent=16) %}",
    "nested lists written": NESTED + "{{ ns.x }}",
    "nested lists as JSON": NESTED + "{{ ns.x | tojson }}",
    "nested lists as text": NESTED + "{% set x = ns.x | string %}",
    "nested lists joined to a text": NESTED + "{% set x = 'a' ~ ns.x %}",
    "nested lists compared": NESTED + NESTED.replace("ns", "other") + "{% set x = ns.x == other.x %}",
    "nested lists compared before a constant": NESTED
    + NESTED.replace("ns", "other")
    + "{% set x = ns.x == other.x == '' %}",
    "nested lists searched": NESTED + NESTED.replace("ns", "other") + "{% set x = ns.x in [other.x] %}",
    "nested lists tested": NESTED + NESTED.replace("ns", "other") + "{% set x = ns.x is eq(other.x) %}",
    "nested lists looked for by a method": NESTED
    + NESTED.replace("ns", "other")
    + "{% set x = [ns.x].index(other.x) %}",
    "nested tuples hashed": NESTED.replace("[", "(").replace("]", ",)") + "{% set x = {ns.x: 1} %}",
    "nested tuples looked up": NESTED.replace("[", "(").replace("]", ",)") + "{% set x = {}[ns.x] %}",
    "nested tuples hashed by dict": NESTED.replace("[", "(").replace("]", ",)") + "{% set x = dict([(ns.x, 1)]) %}",
    "nested namespaces": "{% set n0 = namespace() %}"
    + "".join(f"{{% set n{i + 1} = namespace(a=n{i}, b=n{i}) %}}" for i in range(40))
    + "{{ n40 }}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(99) }}",
    "macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "block that calls itself twice": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "call blocks": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 15
    + "x" * 5000
    + "{% endcall %}" * 15,
    "text in a macro's loop": "{% macro m() %}{% for i in range(9999) %}"
    + "x" * 9999
    + "{% endfor %}{% endmacro %}{{ m() }}",
    "long value in a macro's loop": LONG
    + "{% macro m() %}{% for i in range(9999) %}{{ long }}{% endfor %}{% endmacro %}{{ m() }}",
    "searching": LONG + "{% for i in range(9999) %}{% set x = 'c' in long %}{% endfor %}",
    "searching by a method": LONG + "{% for i in range(9999) %}{% set x = long.find('c') %}{% endfor %}",
    "searching from the end": "{% set x = ('a' * 200000).rfind('ab' ~ 'a' * 100000) %}",
    "stripping": "{% set x = ('ab' * 60000).strip('c' * 60000 ~ 'ab') %}",
    "trimming": "{% set x = ('ab' * 60000) | trim('c' * 60000 ~ 'ab') %}",
    "searching a range": "{% for i in range(99) %}{% set x = 'c' in range(99999) %}{% endfor %}",
    "counting in a list": "{% set a, b = [1] * 9999, [1] * 9999 %}{% set x = ([a] * 9999).count(b) %}",
    "many arguments": "{% for i in range(99) %}{% set x = cycler(*range(99999)) %}{% endfor %}",
    "many arguments of a macro": "{% macro m() %}{{ varargs | length }}{% endmacro %}"
    "{% for i in range(99) %}{% set x = m(*range(99999)) %}{% endfor %}",
    # As many steps as the text has 64 characters, and 21 times as many pieces.
    "splitting": LONG
    + "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = ns.x + [long.split('b')] %}{% endfor %}",
    "cutting": LONG + "{% for i in range(9999) %}{% set x = long[1:] %}{% endfor %}",
    "case": LONG + "{% for i in range(9999) %}{% set x = long | upper %}{% endfor %}",
    "tests of case": LONG + "{% for i in range(9999) %}{% set x = long is upper %}{% endfor %}",
    "tags": "{% set x = ('<!---->' * 90000) | striptags %}",
    "sums of lists": "{% set x = ([[1] * 100] * 900) | sum(start=[]) %}",
    "maps of maps": "{% for i in range(999) %}{% set x = range(9999) | map('string') | list %}{% endfor %}",
    "a lazy map in a loop": "{% for i in range(999) %}{% for x in range(99999) | map('abs') %}{% endfor %}{% endfor %}",
    "a date": "{{ strftime_now('%100000000Y') }}",
    "many dates": "{{ strftime_now('%999Y' * 99) }}",
}


def test_bombs_are_stopped_within_64_megabytes() -> None:
    program = """
import json, sys
from pathlib import Path
from edgelm.text.chat_template import ChatTemplate
from edgelm.errors import ChatTemplateError
ChatTemplate("{{ messages[0] | tojson }}").render([{"role": "user", "content": ""}])
if sys.platform.startswith("linux"):
    import resource
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
bombs, messages = json.load(sys.stdin)
for name, source in bombs.items():
    try:
        ChatTemplate(source).render(messages)
        print(name, "is not stopped")
    except ChatTemplateError as error:
        assert "MemoryError" not in str(error), name
    except BaseException:
        print(name)
        raise
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([BOMBS, MESSAGES]),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ 'x' * 10 ** 9 }}", "takes more steps, or makes longer texts, than any conversation of this size needs"),
        ("{{ 'x' * 10 ** 9 }}", "where it goes through all messages for each of them, fewer help"),
        ("{{ 9 ** 99999 }}", "computes a number of more than 4096 bits"),
        ("{{ '%9999d' % 1 }}", "formats with a width of four digits or more: '%9999d'"),
        ("{{ [[1]] | sum(start=[]) }}", "adds up other things than numbers"),
        ("{{ [1] | tojson(indent=17) }}", "indents JSON by 17; 0 to 16 are allowed"),
        ("{{ [1] | tojson(separators=('x' * 17, ':')) }}", "JSON has separators of more than 16 characters"),
    ],
)
def test_the_error_says_what_is_wrong(source: str, problem: str) -> None:
    with pytest.raises(ChatTemplateError, match="The chat template is broken or hostile: it") as caught:
        ChatTemplate(source).render(MESSAGES)
    assert problem in str(caught.value)


def test_a_date_of_no_sensible_format_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="'%9999Y' is no format of a date"):
        ChatTemplate("{{ strftime_now('%9999Y') }}").render(MESSAGES)


def test_a_template_of_a_megabyte_is_not_compiled() -> None:
    with pytest.raises(ChatTemplateError, match=f"has 1000000 characters; at most {MAX_SOURCE} are read"):
        ChatTemplate("x" * 1_000_000)


def test_a_template_of_many_words_is_not_compiled_to_its_end() -> None:
    assert ChatTemplate("{{ x }}" * (MAX_TOKENS // 3)).render(MESSAGES) == ""
    with pytest.raises(ChatTemplateError, match=f"The chat template has more than {MAX_TOKENS} words and marks"):
        ChatTemplate("{{ x }}" * (MAX_TOKENS // 3 + 1))


@pytest.mark.parametrize(("source", "nodes"), [("{{ x in x }}", 6), ("{% for x in x %}{% endfor %}", 12)])
def test_a_template_of_many_expressions_is_not_compiled_to_its_end(source: str, nodes: int) -> None:
    ChatTemplate(source * (MAX_NODES // nodes - 1))
    with pytest.raises(ChatTemplateError, match=f"has more than {MAX_NODES} expressions and statements"):
        ChatTemplate(source * (MAX_NODES // nodes + 1))


def test_what_is_joined_is_escaped_where_that_is_asked_for() -> None:
    source = "{% autoescape true %}{{ '<' ~ x ~ ('>' | safe) }}{% endautoescape %}{{ '<' ~ x }}"
    assert ChatTemplate(source).render(MESSAGES, variables={"x": "&"}) == "&lt;&amp;><&"


@pytest.mark.parametrize(
    "call",
    [
        "'x'.encode()",
        "'x'.translate({120: 'y'})",
        "'x'.__class__()",
        "5 .to_bytes(2)",
        "{}.fromkeys('x')",
        "{}.items().isdisjoint([])",
        "[].append(1)",
        "(1,).__len__()",
        "range(3).count(1)",
    ],
)
def test_methods_that_no_conversation_needs_are_out_of_reach(call: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"SecurityError: access to attribute '\w+' of '\w+' object is unsafe"):
        ChatTemplate(f"{{{{ {call} }}}}").render(MESSAGES)


@pytest.mark.parametrize(
    "call",
    [
        "[1] | batch(2)",
        "1 | pprint",
        "[1] | random",
        "[1] | slice(2)",
        "'x' | urlize",
        "'x' | wordwrap",
        "{} | xmlattr",
    ],
)
def test_filters_that_no_conversation_needs_are_left_out(call: str) -> None:
    with pytest.raises(ChatTemplateError, match="No filter named"):
        ChatTemplate(f"{{{{ {call} }}}}")


def test_there_are_no_random_texts() -> None:
    with pytest.raises(ChatTemplateError, match="'lipsum' is undefined"):
        ChatTemplate("{{ lipsum() }}").render(MESSAGES)


# What templates of today's models do; the same template in jinja2's own sandbox is the oracle.
TEMPLATE = """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}
{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{% set ns = namespace(last=-1, calls=[]) %}
{% for message in rest[::-1] %}{% if ns.last < 0 and message.role == 'user' %}
{% set ns.last = rest | length - loop.index0 %}{% endif %}{% endfor %}
{% macro turn(message, first=false) %}<{{ message['role'] }}>{{ message['content'].strip() }}
{%- if message.get('calls') %}{{ message.calls | tojson(indent=2) }}{% endif %}{% endmacro %}
{%- for tool in tools | default([], true) | selectattr('type', 'equalto', 'function') %}{{ tool | tojson }}
{% for key, value in tool.parameters | dictsort %}{{ '%-10s|%s' | format(key, value) }}
{{ key.ljust(12) ~ value }}{% endfor %}
{% endfor %}{{ system | upper | replace('A', 'b') | indent(4) }}
{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ 'odd' }}{% endif %}
{%- if 'think' in message.content %}{{ message.content.split('think')[-1].lstrip('\n') }}{% endif %}
{{- turn(message, loop.first) }}{% if not loop.last %}{{ '{:>5}'.format(loop.index) }}{% endif %}
{%- if message.role in ['tool', 'user'] and loop.index == ns.last %}{{ ', '.join(['a', 'b']) }}{% endif %}{% endfor %}
{{ 1700000000 | string }} {{ 6 is divisibleby 3 }} {{ 3 is odd }} {{ 3 is even }} {{ '%(n)5d [%%] (%(n)s)' % {'n': 7} }}
{{ '{{"a": [{}], "b[0]": {:>5}}}'.format(1, 2) }} {{ '--x-'.strip('-') }} {{ 1 < 2 == true }} {{ [1, 2, 1].count(1) }}
{{ rest | map(attribute='role') | unique | list | join(', ') }} {{ [3, 1, 2] | sum(start=1) }} {{ 7.5 | round(1) }}
{%- for part in [1, [2, [3]]] recursive %}{% if part is iterable %}{{ loop(part) }}
{% else %}{{ part }}{% endif %}{% endfor %}"""

# Gemma 4's template looks behind each message for the one that counts, and so goes through all of them; GPT-OSS's looks
# before each call of a tool whether the answer has come. Neither can leave its loop.
SCANS = {
    "behind": "{% for m in messages %}{% set found = namespace(role=none) %}"
    "{% for j in range(loop.index0 - 1, -1, -1) %}{% if not found.role %}{% if messages[j]['role'] != 'tool' %}"
    "{% set found.role = messages[j]['role'] %}"
    + "{% set x = [messages[j], [j], 'x'] %}" * 9
    + "{% endif %}{% endif %}{% endfor %}{{ found.role }}{{ m['content'] | trim }}{% endfor %}",
    "before": "{% for m in messages %}{{ m.content }}{% if 'calls' in m %}{% set answer = namespace(is_there=false) %}"
    "{% for later in messages[loop.index:] %}{% if later.role == 'user' and 'calls' not in later %}"
    "{% set answer.is_there = true %}{% endif %}{% endfor %}{{ answer.is_there }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", SCANS)
def test_a_template_may_go_through_all_messages_for_each_of_a_thousand(name: str) -> None:
    calls = [{"id": "call", "type": "function", "function": {"name": "f", "arguments": {"path": "a"}}}]
    messages = [
        message
        for i in range(500)
        for message in ({"role": "user", "content": f"{i} "}, {"role": "assistant", "content": "b", "calls": calls})
    ]
    plain, ours = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(SCANS[name]), ChatTemplate(SCANS[name])
    assert ours.render(messages[:100]) == plain.render(messages=messages[:100])  # which takes longer than ours for all
    assert len(ours.render(messages)) > 2000


@pytest.mark.parametrize(("turns", "characters"), [(1, 10), (2000, 200), (3, 1_000_000), (15, 100_000)])
def test_a_conversation_of_any_size_is_rendered_as_jinja2_does(turns: int, characters: int) -> None:
    messages = [{"role": "system", "content": " Be brief. "}]
    for i in range(turns):
        messages += [
            {"role": "user", "content": f"think\n{i} " + "a" * characters},
            {"role": "assistant", "content": "b" * characters, "calls": [{"name": "f", "arguments": {"x": i}}]},
        ]
    tools = [{"type": "function", "name": f"f{i}", "parameters": {"b": "number", "a": "text"}} for i in range(64)]
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)

    rendered = ChatTemplate(TEMPLATE).render(messages, variables={"tools": tools})

    assert rendered == plain.from_string(TEMPLATE).render(messages=messages, tools=tools)
