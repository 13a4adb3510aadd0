"""Writes chat_templates.json: what transformers makes of chat templates.

Run: python3 chat_templates.py   (needs transformers 5 and jinja2 3.1; the version that was used stands in the table)
"""

import datetime
import json
from pathlib import Path

import jinja2
import transformers
from transformers.utils import chat_template_utils

# The instant that strftime_now writes, in milliseconds of UTC.
NOW = 1_795_763_920_000


class Frozen(datetime.datetime):
    """The clock of transformers, stopped."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW / 1000, datetime.timezone.utc).replace(tzinfo=None)


chat_template_utils.datetime = Frozen

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# Written for this table, in the shapes that the families' own templates have.
FAMILIES = {
    "llama3": """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "chatml": """\
{% for message in messages %}
{% if loop.first and message.role != 'system' %}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
""",
    "qwen3": """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last == messages|length - 1 and message.role == "user" %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and reasoning %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == loop_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] " + tools|tojson + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, not " + message["role"]) }}
    {%- endif %}
{%- endfor %}
""",
    "deepseek": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(system_prompt='', is_first=true) %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}\
{%- if ns.is_first %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first = false %}\
{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}\
{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}\
{%- for message in messages %}\
{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}\
{%- endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}""",
    # Llama 3.2 and 3.3: as 3.1, with the date told and written in the template.
    "llama3.3": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role in ['user', 'assistant', 'system'] %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Tekken: a system's own tokens, no space behind [INST], today's date in the default.
    "mistral tekken": """\
{%- set today = strftime_now("%Y-%m-%d") if strftime_now is defined else "2025-01-30" %}
{%- set default_system_message = "You are a model.\\nThe current date is " + today + ".\\n\\n" %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}
        {%- set system_message = messages[0]['content'] %}
    {%- else %}
        {%- set system_message = messages[0]['content'][0]['text'] %}
    {%- endif %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = default_system_message %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}
            {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}
                    {{- block['text'] }}
                {%- endif %}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user, system and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
""",
    # Qwen2.5 without functions, and its default system.
    "qwen2.5": """\
{%- if tools %}
    {{- '<tools>' + tools | tojson + '</tools>' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # The hybrids of Qwen: content by a macro, a prompt that may begin inside of a thought.
    "qwen3.5": """\
{%- macro render_content(content, is_system=false) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}
            {%- if 'text' in item %}
                {{- item.text }}
            {%- elif is_system %}
                {{- raise_exception('System message cannot contain images.') }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is none or content is undefined %}
        {{- '' }}
    {%- else %}
        {{- raise_exception('Unexpected content type.') }}
    {%- endif %}
{%- endmacro %}
{%- if not messages %}
    {{- raise_exception('No messages provided.') }}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set content = render_content(messages[0].content, true)|trim %}
    {{- '<|im_start|>system\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and not ns.found %}
        {%- set ns.found = true %}
        {%- set ns.last_query_index = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if not ns.found %}
    {{- raise_exception('No user query found in messages.') }}
{%- endif %}
{%- for message in messages %}
    {%- set content = render_content(message.content)|trim %}
    {%- if message.role == "system" %}
        {%- if not loop.first %}
            {{- raise_exception('System message must be at the beginning.') }}
        {%- endif %}
    {%- elif message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- set reasoning_content = reasoning_content|trim %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
""",
    # The distills of R1: no thought of an earlier turn, and every answer begins with one.
    "r1 distill": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}\
{%- for message in messages %}\
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}\
{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}\
{%- endfor -%}\
{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}""",
    # DeepSeek V3.1: thoughts on demand, closed where none are wanted.
    "deepseek v3.1": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% if not thinking is defined %}{% set thinking = false %}{% endif %}\
{% set ns = namespace(system_prompt='', is_first_sp=true, is_last_user=false) %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}\
{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}\
{{ bos_token }}{{ ns.system_prompt }}\
{%- for message in messages %}\
{%- if message['role'] == 'user' %}{%- set ns.is_last_user = true -%}{{'<｜User｜>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' %}{%- if ns.is_last_user %}{{'<｜Assistant｜>'}}{%- if message['prefix'] is defined and message['prefix'] and thinking %}{{'<think>'}}{%- else %}{{'</think>'}}{%- endif %}{%- endif %}\
{%- set ns.is_last_user = false -%}{%- set content = message['content'] -%}{%- if '</think>' in content %}{%- set content = content.split('</think>', 1)[1] -%}{%- endif %}{{content + '<｜end▁of▁sentence｜>'}}{%- endif %}\
{%- endfor -%}\
{%- if add_generation_prompt and ns.is_last_user %}{{'<｜Assistant｜>'}}{%- if not thinking %}{{'</think>'}}{%- else %}{{'<think>'}}{%- endif %}{% endif %}""",
}

# Families that call functions, in the shapes that their own templates have with tools.
TOOL_FAMILIES = {
    "qwen2.5 with tools": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou may call one or more functions.\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "qwen3 with tools": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each call, return <tool_call></tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in message.content %}
                {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
                {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "qwen3-coder": """\
{% macro render_extra_keys(json_dict, handled_keys) %}
    {%- if json_dict is mapping %}
        {%- for json_key in json_dict if json_key not in handled_keys %}
            {%- if json_dict[json_key] is mapping or (json_dict[json_key] is sequence and json_dict[json_key] is not string) %}
                {{- '\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | tojson | safe) ~ '</' ~ json_key ~ '>' }}
            {%- else %}
                {{- '\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | string) ~ '</' ~ json_key ~ '>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{%- if not tools is defined %}
    {%- set tools = [] %}
{%- endif %}
{%- if tools is iterable and tools | length > 0 %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}
        {%- if tool.function is defined %}
            {%- set tool = tool.function %}
        {%- endif %}
        {{- '\\n<function>\\n<name>' ~ tool.name ~ '</name>' }}
        {%- if tool.description is defined %}
            {{- '\\n<description>' ~ (tool.description | trim) ~ '</description>' }}
        {%- endif %}
        {{- '\\n<parameters>' }}
        {%- if tool.parameters is defined and tool.parameters is mapping and tool.parameters.properties is defined and tool.parameters.properties is mapping %}
            {%- for param_name, param_fields in tool.parameters.properties|items %}
                {{- '\\n<parameter>\\n<name>' ~ param_name ~ '</name>' }}
                {%- if param_fields.type is defined %}
                    {{- '\\n<type>' ~ (param_fields.type | string) ~ '</type>' }}
                {%- endif %}
                {%- set handled_keys = ['name', 'type', 'description'] %}
                {{- render_extra_keys(param_fields, handled_keys) }}
                {{- '\\n</parameter>' }}
            {%- endfor %}
        {%- endif %}
        {%- set handled_keys = ['type', 'properties'] %}
        {{- render_extra_keys(tool.parameters, handled_keys) }}
        {{- '\\n</parameters>\\n</function>' }}
    {%- endfor %}
    {{- '\\n</tools>\\n<tool_call>\\n<function=example>\\n</function>\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined and message.tool_calls is iterable and message.tool_calls | length > 0 %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content is defined and message.content is string and message.content | trim | length > 0 %}
            {{- '\\n' + message.content | trim + '\\n' }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n' }}
            {%- if tool_call.arguments is defined %}
                {%- for args_name, args_value in tool_call.arguments|items %}
                    {{- '<parameter=' + args_name + '>\\n' }}
                    {%- set args_value = args_value | tojson | safe if args_value is mapping or (args_value is sequence and args_value is not string) else args_value | string %}
                    {{- args_value }}
                    {{- '\\n</parameter>\\n' }}
                {%- endfor %}
            {%- endif %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "user" or message.role == "system" or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>user\\n' }}
        {%- endif %}
        {{- '<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>\\n' }}
        {%- if not loop.last and loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- elif loop.last %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama3.1 with tools": """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral with tools": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
""",
    # Looks for calls where the content is none, joins the arguments as text, and never lists the functions.
    "deepseek with calls": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true) %}{{bos_token}}\
{%- for message in messages %}\
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is none %}{%- set ns.is_tool = false -%}\
{%- for tool in message['tool_calls']%}\
{%- if not ns.is_first %}{{'<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>'}}{%- set ns.is_first = true -%}\
{%- else %}{{'\\n' + '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>'}}{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor %}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}\
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- set ns.is_output_first = false %}{%- else %}{{'\\n<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}{%- endif %}\
{%- endfor -%}\
{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}""",
}
# Families that take arguments as text, and no content where nothing is said.
AS_TEXT = {"deepseek with calls"}

SYSTEM = {"role": "system", "content": "  You answer briefly. "}
CONVERSATIONS = {
    "one question": [{"role": "user", "content": "What is the capital of France?"}],
    "with a system": [SYSTEM, {"role": "user", "content": "Hi!\n\nÄé 漢字 🦀 <b>&amp;</b>"}],
    "several turns": [
        SYSTEM,
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4 "},
        {"role": "user", "content": "And '\"3\\n\" + {{ 3 }}'?", "name": "Ada"},
    ],
    "ends with the assistant": [
        {"role": "user", "content": "Go on"},
        {"role": "assistant", "content": "<think>\nwhere?\n</think>\n\nHere"},
    ],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "not to think": [SYSTEM, {"role": "user", "content": "2 + 2? /no_think"}, {"role": "assistant", "content": "<think>\n\n</think>\n\n4"}, {"role": "user", "content": "Why? /think"}],
    "nobody asks": [SYSTEM],
    "two systems": [SYSTEM, SYSTEM, {"role": "user", "content": ""}],
}
OPTIONS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "enable_thinking": False, "thinking": True, "date_string": "1 May 2026"},
]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Wo? é"}, "days": {"type": "integer", "enum": [1, 7]}},
    "required": ["city"],
    "é": [1, 1.0, 1e-7, None, True],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
ASKED = {"role": "user", "content": "How is <Paris>?"}


def calls(*calls, content=""):
    """An assistant's message as the network has it."""
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def call(id, name="weather", arguments='{"days": 7, "city": "Paris é"}'):
    return {"id": id, "name": name, "arguments": arguments}


def result(id, content='{"sky": "blue"}', name="weather"):
    return {"role": "tool", "content": content, "name": name, "tool_call_id": id}


TOOL_CONVERSATIONS = {
    "a question": [SYSTEM, ASKED],
    "a call and its result": [ASKED, calls(call("abcdefgh1")), result("abcdefgh1")],
    "two calls": [
        SYSTEM,
        ASKED,
        calls(call("abcdefgh1"), call("abcdefgh2", "now", ""), content="I look."),
        result("abcdefgh2", "12:00 <b>", "now"),
        result("abcdefgh1"),
        {"role": "assistant", "content": "It is noon."},
        {"role": "user", "content": "Thanks."},
    ],
    "two calls and no word": [
        ASKED,
        calls(call("abcdefgh1"), call("abcdefgh2", "now", "{}")),
        result("abcdefgh1"),
        result("abcdefgh2", "12:00", "now"),
    ],
    "an id of another server": [ASKED, calls(call("call_1")), result("call_1")],
    "arguments of each kind": [
        ASKED,
        calls(call("abcdefgh1", "weather", '{"a": [1, {"b": 1.5}], "c": {"é": null}, "d": "x\\n\\"y\\"", "e": true}')),
        result("abcdefgh1"),
    ],
}
TOOL_OPTIONS = [
    {"add_generation_prompt": True, "tools": TOOLS},
    {"add_generation_prompt": True, "tools": TOOLS, "enable_thinking": True},
    {"add_generation_prompt": True, "tools": TOOLS, "enable_thinking": False},
    {"add_generation_prompt": False},
]

# Small templates on these variables and a short conversation: one feature each.
VARIABLES = {
    "x": {"b": 1, "a": [1, 2.5, "é\"\n\u0001\u007f/<&'"], "none": None, "yes": True, "empty": {}, "no": []},
    "words": " a,b ,, c ",
    "s": "Hello World it's",
    "numbers": [3, 1, 2],
    "pi": 3.0,
    "floats": [0.1, 1e16, 1e-7, -0.0, 123456.789, 1e22, 5e-324],
    "n": 7,
    "m": -7,
    "big": 12345678901234567890,
    "t": True,
    "nul": None,
    "e": "",
    "uni": "Äé 漢字 🦀\u00a0x\u200b\u0301",
    "nest": {"a": {"b": [{"c": "it's"}, None, 1e16]}},
    "ml": "l1\nl2\r\nl3\x0bl4\n",
    "people": [{"name": "b", "age": 2}, {"name": "A", "age": 1}, {"name": "b", "age": 3}],
}
TALK = [
    {"role": "system", "content": "  You answer briefly. "},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Why?", "name": "Ada"},
]
# One expression a line.
EXPRESSIONS = r"""
'%s' % n
'%s and %s' % (n, s)
'%d%%' % n
'%5.2f|%-5s|%05d|%x|%X|%o|%e|%g|%r|%c|%+d' % (pi, 'a', n, 255, 255, 8, pi, pi, 'a', 'z', n)
'%s' % x
'%(a)s %(b)d' % {'a': 1, 'b': 2}
'%s' % numbers
'%s %s' % n
'%d' % 'a'
n % 4
m % 4
n % 2 == 1
n * 2 % 5
n + n % 5 * 2
-n % 5
s ~ n % 4 ~ n
'a' ~ '%s' % n ~ 'b'
('%s' % n) | length
'%s' % s | upper
s.rsplit()
s.rsplit(' ', 1)
s.rsplit(maxsplit=1)
s.split(maxsplit=1)
s.split(sep=' ')
s.split(' ', 1)
words.split(',')
words.split()
''.split()
''.split(',')
e.rsplit(',')
'a'.split('')
s.partition(' ')
s.rpartition(' ')
s.title()
s | title
s.capitalize()
s | capitalize
s.swapcase()
s.casefold()
'ß'.upper()
"they're bill's friends from the UK".title()
"they're bill's friends from the UK" | title
'hello-world foo_bar (baz)' | title
'hello-world foo_bar (baz)'.title()
s.removeprefix('Hello')
s.removesuffix('x')
s.center(30) ~ '|'
s.center(31, '*') ~ '|'
s.ljust(30, '.')
s.rjust(30, '.')
'42'.zfill(5)
'-42'.zfill(5)
s.find('o')
s.find('o', 5)
s.rfind('o')
s.index('o')
s.index('zz')
s.count('o')
s.count('')
s.count('o', 5)
s.startswith('He')
s.startswith(('a', 'He'))
s.startswith('World', 6)
s.endswith('s')
s.endswith(('a', 's'))
s.isalpha()
'abc'.isalpha()
'a1'.isalnum()
'12'.isdigit()
'½'.isnumeric()
'²'.isdigit()
'AB'.isupper()
'aB'.islower()
' \t'.isspace()
''.isspace()
'Ab Cd'.istitle()
'abc'.isidentifier()
'abc'.isascii()
'abc'.isprintable()
'a\tb'.expandtabs()
'a\tb'.expandtabs(4)
ml.splitlines()
ml.splitlines(True)
ml.splitlines(keepends=True)
'-'.join(['a','b'])
'-'.join([1])
'-'.join('abc')
s.replace('o', '0')
s.replace('o', '0', 1)
s.replace('', '-')
s.replace('o', '0', -1)
s | replace('o', '0')
s | replace('o', '0', 1)
s | replace('', '-')
s | replace('o', '0', count=1)
n | replace('7', '8')
s.strip('Hs')
s.lstrip('He')
s.rstrip("s'")
s.strip(none)
'  a '.strip() ~ '|'
s | trim('H')
'{} {}'.format(1, 'a')
'{0} {1} {0}'.format(1, 'a')
'{a}'.format(a=1)
'{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}'.format(1, 2, 3, 4, pi, 1234567)
'{{}}'.format()
'{a[b]}'.format(a={'b':2})
'%s' | format(1)
'%s %d' | format('a', 3)
'%(a)s' | format(a=1)
s | wordcount
'' | wordcount
ml | wordcount
s is sequence
n is sequence
x is sequence
numbers is sequence
nul is sequence
missing is sequence
s is iterable
nul is iterable
x is mapping
s is mapping
range(3) is sequence
range(3) is iterable
x.items() is iterable
n is number
t is number
t is integer
pi is float
t is boolean
n is boolean
n is odd
n is even
n is divisibleby 7
n is divisibleby(3)
n is sameas 7
nul is sameas none
s is lower
s is upper
s is callable
range is callable
missing is undefined
missing is defined
n in numbers
'a' in x
'H' in s
n not in numbers
missing in numbers
n is in numbers
n is in([7])
n is eq 7
n is gt 3
n is not gt 3
'upper' is filter
'odd' is test
x
floats
nest
uni
[uni]
[s]
['a"b']
["a'b\"c"]
['a\\b\n\t\x00\x7f\xa0\xad']
(1, 2)
(1,)
()
[(1, 'a')]
{'a': 1.0, 2: none}
{1.5: 'x', true: 'y'}
pi
1e16
1e15
1.0e-5
0.0001
1e300 * 1e10
-(1e300 * 1e10)
big
big * big
2 ** 100
2 ** -1
2 ** 0.5
7 / 2
6 / 2
7 // 2
-7 // 2
7.5 // 2
7 / 0
7 % 0
1 // 0
true + 1
t + t
t * 3
'a' * 3
3 * 'a'
'a' * -1
[1] * 2
[1] + [2]
(1,) + (2,)
[1] + (2,)
'a' + 1
1 + 'a'
'a' + none
none + 1
missing + 'a'
'a' + missing
missing ~ 'a'
none ~ true ~ 1.0 ~ [1.0, 1e16] ~ x
'a' 'b'
'a' "b'c"
'\U0001F980'
'\x41\u00e9\101\a\v' | tojson
'\/'
'\q'
'tab\there'
"dq\"x"
'sq\'x'
'\\n'
'\0'
'\777'
x | tojson
x | tojson(indent=2)
x | tojson(indent=0)
x | tojson(indent=none)
x | tojson(indent='--')
x | tojson(true)
x | tojson(ensure_ascii=true)
uni | tojson(ensure_ascii=true)
x | tojson(separators=(',', ':'))
x | tojson(separators=[',', ':'], indent=1)
x | tojson(sort_keys=true)
floats | tojson
(1,2) | tojson
missing | tojson
{'a': (1e300*1e10)} | tojson
x | tojson(false, 2)
x | tojson(False, 4, (',', ':'), True)
'</script>' | tojson
x.items() | list
x.keys() | list
x.values() | list
x | items | list
x | list
x | length
s | list
s | length
nul | length
n | length
nul | list
missing | list
missing | length
nul | join(',')
missing | join(',')
numbers | join
numbers | join(', ')
[1.0, none, true, 'a', [1e16]] | join('|')
people | join(',', attribute='name')
people | map(attribute='name') | list
people | map(attribute='zip', default='z') | list
people | map('length') | list
numbers | map('string') | list
s.split() | map('upper') | join(' ')
people | sort(attribute='name') | map(attribute='age') | list
people | sort(attribute='name,age') | map(attribute='age') | list
people | sort(attribute='age', reverse=true) | map(attribute='age') | list
['b', 'A', 'c'] | sort
['b', 'A', 'c'] | sort(case_sensitive=true)
numbers | sort(true)
people | unique(attribute='name') | map(attribute='age') | list
['a', 'A', 'b'] | unique | list
['a', 'A', 'b'] | unique(true) | list
people | selectattr('age', 'gt', 1) | map(attribute='age') | list
people | selectattr('age', '>', 1) | map(attribute='age') | list
people | rejectattr('age', 'eq', 1) | map(attribute='age') | list
people | selectattr('age') | list | length
numbers | select('odd') | list
numbers | reject('odd') | list
numbers | select('in', [1,2]) | list
numbers | select | list
numbers | sum
people | sum(attribute='age')
people | sum('age', 10)
numbers | min
numbers | max
['b', 'A'] | min
people | max(attribute='age')
[] | max
[] | first
[] | last
[] | sum
s | first
s | last
numbers | reverse | list
s | reverse
numbers | batch(2) | list
numbers | batch(2, 'x') | list
numbers | slice(2) | list
numbers | slice(2, 'x') | list
x | dictsort
{'b':1,'A':2} | dictsort
{'b':1,'A':2} | dictsort(true)
{'b':1,'A':2} | dictsort(by='value', reverse=true)
-3 | abs
-3.5 | abs
2.5 | round
3.14159 | round(2)
3.7 | round(0, 'floor')
3.2 | round(method='ceil')
'42' | int
'4x' | int
'4x' | int(9)
'0x1f' | int(0, 16)
'3.9' | int
3.9 | int
none | int
'1.5' | float
'x' | float
'x' | float(2.0)
missing | int
n | string
pi | string
[1.0,1e16] | string
x | string
nul | string
t | string
missing | string
s | upper
n | upper
s | lower
s | trim
n | trim
nul | trim
missing | trim
s | default('d')
missing | default('d')
nul | default('d')
nul | default('d', true)
e | default('d', boolean=true)
missing | d('d')
missing.foo
missing.foo | default('d')
missing['foo']
nul.foo
nul['foo']
n.foo
s.foo
x.foo.bar
numbers[10]
numbers[-1]
numbers[1:]
numbers[::-1]
s[1:3]
s[-3:]
s[::-1]
s[0]
s[100]
x['a'][0]
x.a.0
numbers.0
x.get('zz')
x.get('zz', 3)
x.get('b')
x.pop('b')
x.update({'q':1})
numbers.append(4)
numbers.index(1)
numbers.count(1)
numbers.index(77)
'<a href="x">&\'' | escape
'<a>' | e
'<a>' | safe
'<a>' | forceescape
ml | indent
ml | indent(2)
ml | indent(2, true)
ml | indent(width=2, first=true)
'a\n\nb' | indent(2)
'a\n\nb' | indent(2, blank=true)
'a\nb' | indent('>>')
s | center(30) ~ '|'
namespace(a=1).a
dict(a=1, b=2)
dict({'a':1}, b=2)
dict(a=1).b
range(5) | list
range(1, 5) | list
range(5, 1, -2) | list
range(5)[2]
range(5) | length
1 if t else 2
1 if nul
(1 if nul) ~ 'x'
not t
not t == false
1 < 2 < 3
3 > 2 > 2
1 == 1.0
1 == true
'a' < 'b'
[1,2] == [1,2]
[1,2] < [1,3]
(1,2) == [1,2]
{'a':1} == {'a':1}
nul == none
missing == missing
missing == none
nul is none
n and 0
0 or 'x'
'' or e or 'z'
n and s
none or missing
-n
+n
--n
-s
-n | abs
t | tojson
true
True
none
None
false
[1, [2, [3]]]
{}
{'a': {}}
{'a':1}['a']
{'a':1}.a
{'items': 1}['items']
[1,2,3][1]
'abc'[1]
s.upper().lower().title()
s.__class__
s.__len__()
x.__class__
'%Y' | length
loop is defined
caller is defined
varargs is defined
1_000
0x1F
0b11
0o17
1.5e3
1e-7
12_3.4
.5
'a' if 1 in [1] else 'b'
1 in {1: 2}
'x' ~ ('a', 'b')
n is not none
n is not none and true
n is none or true
s.split(' ')[0]
(s.split(' ') | last).strip("'s")
numbers | map('abs') | sum
numbers|map("multiply", 2)|list
s.lower() in ['hello']
'a,b'.split(',') | map('trim') | list
[[1,2],[3,4]] | map('first') | list
[[1,2],[3,4]] | sum(start=[])
zip is defined
none | default
'  x ' | trim | length
'a' == "a"
s is string and s is not mapping
t is true
t is false
n is true
'x' is not string
missing is string
1 is integer
1.0 is integer
1.0 is float
1.0 is number
messages[0].role
messages[0]['content']
messages | length
messages[-1].role == 'user'
messages[5:] | length
messages | map(attribute='role') | unique | list
bos_token
n|string + s
(n|string) ~ s|length
nul|tojson
'a'|string is string
5|string|length
'%02d' % 3
'%.3f' % 2
'%s' % (n,)
'%s' % ((1,2),)
'%5s|%-5s|' % ('é', 'x')
'%i' % 3.7
'%s' % none
'%s' % true
'%s' % 1.0
'%r' % s
'%%'
'%%' % ()
'100%' % ()
fmt % 3 if fmt is defined else 'no'
'abc' | first ~ 'abc' | last
'a'|upper ~ 'b'|upper
'1' + '2' * 2 ~ '3'
1 + 2 ~ 3 + 4
1 ~ 2 * 3 ~ 4
2 ** 3 ** 2
-2 ** 2
2 * 3 % 4 * 2
10 - 3 - 2
10 - 3 + 2
'a' + 'b' ~ 'c' + 'd'
1 - 1 ~ 1
"""
TEMPLATES = [
    "{% for a in nul %}x{% endfor %}",
    "{% for a in missing %}x{% else %}e{% endfor %}",
    "{% for a in n %}x{% endfor %}",
    "{% for a in s %}{{a}}.{% endfor %}",
    "{% for a in 1, 2, 3 %}{{a}}{% endfor %}",
    "{% for a, b in x.items() %}{{a}}={{b}};{% endfor %}",
    "{% for a in x.nope %}x{% endfor %}",
    "{% for a in x.none %}x{% endfor %}",
    "{% for a in numbers if a % 2 %}{{a}}{{loop.length}}{% endfor %}",
    "{% for a in (numbers if t else nul) %}{{a}}{% endfor %}",
    "{% for a in numbers + [4] if a > 1 %}{{loop.index}}{{loop.last}}{{a}} {% else %}no{% endfor %}",
    "{% for a in [[1,[2]],[3]] recursive %}{% if a is iterable %}[{{loop(a)}}]{% else %}{{a}}{{loop.depth}}{% endif %}{% endfor %}",
    "{% for a in numbers %}{{loop.index}}{{loop.index0}}{{loop.revindex}}{{loop.revindex0}}{{loop.first}}{{loop.last}}{{loop.length}}{{loop.previtem}}{{loop.nextitem}}{{loop.cycle('a','b')}}{{loop.changed(a)}}|{% endfor %}",
    "{% for a in numbers %}{% if loop.index == 2 %}{% continue %}{% endif %}{{a}}{% endfor %}",
    "{% for a in numbers %}{% break %}{% else %}e{% endfor %}",
    "{% generation %}a{% endgeneration %}b",
    "{%- generation -%} a {%- endgeneration -%} b",
    "{% for m in messages %}{% generation %}{% set q = 1 %}{{ m.content }}{% endgeneration %}{{ q }}{% endfor %}",
    "{% set q = 1 %}{% generation %}{% set q = 2 %}{{ q }}{% endgeneration %}{{ q }}",
    "{% set q = 1 %}{% if true %}{% set q = 2 %}{% endif %}{{ q }}",
    "{% set q = 1 %}{% for i in [1] %}{% set q = 2 %}{% endfor %}{{ q }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set a = (1 if t else 2) %}{{ a }}",
    "{% set a %}x{{ n }}{% endset %}{{ a }}{{ a is string }}{{ a | length }}",
    "{% set a | upper %}x{% endset %}{{ a }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace(a={}) %}{{ ns.a }}",
    "{% set ns = namespace(a=1, b='x') %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns['b'] }}",
    "{% set x.a = 1 %}",
    "{% macro f(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call f(1) %}in{% endcall %}",
    "{% macro f(a, b) -%} {{ a }}{{ b }} {%- endmacro %}[{{ f('x') }}]",
    "{% macro f() %}x{% endmacro %}{{ f() | upper }}{{ f() ~ 'y' }}{{ f() is string }}",
    "{% macro f(a) %}{{ a.name }}{% endmacro %}{{ f(people[0]) }}",
    "{% macro f() %}{{ n }}{% set n = 3 %}{% endmacro %}{{ f() }}{{ n }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}",
    "{% filter upper %}a{{ s }}{% endfilter %}",
    "{% raw %}{{ x }}{% endraw %}",
    "{% raw -%}  {{ x }}  {%- endraw %}",
    "{# c #}a{#- c -#} b",
    "{% block a %}x{% endblock %}{{ self.a() }}",
    "{% block a %}x{% endblock a %}",
    "{% do x %}",
    "{% if n %}a{% elif s %}b{% else %}c{% endif %}",
    "a\r\nb\rc\n",
    "a\n\n",
    "a\n",
    "{{ 'a\r\nb' | tojson }}",
    "  {% if t %}\n  x\n  {% endif %}  \ny",
    "{{ s }}\n{{ s }}\n",
    " {%+ if t %}\nx\n{% endif +%}\ny",
    "{%- if t -%}\n x \n{%- endif -%}\n y",
    "\t{# x #}\n\ty",
    "x {% if t %} y {% endif %} z\n",
    "{{- s -}}  \n z",
    "{% if t %}\r\nx{% endif %}",
    "{{ raise_exception('x') }}",
    "{{ raise_exception('x' ~ n) }}",
    "{{ raise_exception() }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% from 'x' import y %}",
    '{{ \'a\' }}{{ "b" }}{{ \'c\\\'d\' }}',
    "{{ '{{' }}{{ '%}' }}{{ '}}' }}",
    "{% set a = '%}' %}{{ a }}",
    "{{ {'a': {'b': 1}} }}",
    "{{ {'a': {'b': 1}}['a']['b'] }}",
    "{{ '%' }}{{ '% s' }}",
    "{% if '%' in s %}a{% else %}b{% endif %}",
    "{{ n %4 }}",
    "{{n%4}}",
    "{{n%-4}}",
    "{% if n%4==3%}y{%endif%}",
    "{% if n is divisibleby 7 % 2 %}{% endif %}",
    "{%- set ns = namespace(found=false) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.found = true -%}{%- endif -%}{%- endfor -%}{{ ns.found }}",
    "{{ strftime_now('%d %b %Y') }}",
    "{% for k in x | sort %}{{ k }}{% endfor %}",
    "{% for k, v in x | dictsort %}{{ k }}{% endfor %}",
    "{% for k, v in x|items %}{{ k }}{% endfor %}",
    "{% for i in range(3) %}{{ i }}{% endfor %}",
    "{% for g, l in people | groupby('name') %}{{ g }}{{ l | length }}{% endfor %}",
    "{% call(a) f() %}{% endcall %}",
    "{{ x.a[0] }}{{ x['a'][1] }}{{ x.a|length }}",
    "{{ messages[0].nope.nope }}",
    "{{ nope.nope }}",
    "{{ nope() }}",
    "{{ x() }}",
    "{{ s() }}",
    "{{ x.nope() }}",
    "{{ nul.nope() }}",
    "{% if nope %}a{% else %}b{% endif %}",
    "{% if nope == none %}a{% else %}b{% endif %}",
    "{{ nope|length }}",
    "{{ nope|tojson }}",
    "{% set nope2 = nope %}{{ nope2 is defined }}",
    "{{ x.nope is defined }}",
    "{{ x.nope is none }}{{ x.none is none }}",
    "{% if not x.nope %}a{% endif %}",
    "{{ x.a.nope is defined }}",
    "{%if t%}a{%endif%}",
    "{{s}}",
    "{{\ns\n}}",
    "{%\nif t\n%}a{%\nendif\n%}",
    "{{ [1,2,]}}{{ {'a':1,} }}",
    "{{ range(3)|map('string')|join(',') }}",
    "{{ '\\n' in ml }}",
    "{{ s.split()|length > 1 }}",
    "{{ {'a':1}|tojson|safe }}",
    "{{ (x|tojson)[:-1] }}",
    "{{ x|tojson|replace('b','c') }}",
    "{{ messages|tojson }}",
    "{{ messages }}",
    "{{ messages[0] }}",
    "{{ messages|string }}",
    "{{ people|map(attribute='name')|join(', ') }}",
    "{% for message in messages %}{{ message['role']|capitalize + ': ' + message.content }}{% endfor %}",
    "{% trans %}x{% endtrans %}",
    "{{ debug() }}",
    "{% foo %}",
    "{% if %}",
    "{{ 1 + }}",
    "{{ 'a }}",
    "{% endif %}",
    "{% for %}",
    "{{ s | nofilter }}",
    "{{ s is notest }}",
    "{% if false %}{{ s | nofilter }}{% endif %}x",
    "{% if false %}{{ s is notest }}{% endif %}x",
    "{% set _ = x.update({'zz': 1}) %}{{ x.zz }}",
    "{% set _ = numbers.append(1) %}{{ numbers }}",
    "{{ numbers.append(1) or '' }}",
    "{{ ('a', 'b') | join }}{{ ('a','b')[0] }}",
    "{{ 'a' is eq 'a' and 'b' is ne 'c' }}",
    "{{ (1, 2) in [(1, 2)] }}",
    "{{ [1,2] + [3] == [1,2,3] }}",
    "{{ 'x' * (3 - 1) ~ '.' }}",
    "{{ true and not false }}",
    "{{ not (true and false) }}",
    "{{ s[:-1] + '...' if s|length > 5 else s }}",
    "{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }},{% endfor %}{% endfor %}",
    "{% for i in range(2) %}{% set outer = loop %}{% for j in range(2) %}{{ outer.index }}{% endfor %}{% endfor %}",
    "{% set a = [] %}{% set a = a + [1] %}{% set a = a + ['b'] %}{{ a }}{{ a | length }}",
    "{% set a = {} %}{% set a = dict(a, **{'b': 1}) %}{{ a }}",
    "{{ dict(x, **{'q': 1}) | length }}",
    "{{ [*numbers] }}",
    "{{ dict([('a',1)]) }}",
    "{{ s.join(['a','b']) }}",
    "{{ ''.join(['a']) }}",
    "{{ ', '.join(x.keys()) }}",
    "{{ (x.keys()|list)[0] }}",
    "{{ x.values()|list|last }}",
    "{% for a in x.keys() %}{{ a }}{% endfor %}",
    "{% for a in x.values() %}{{ a }}{% endfor %}",
    "{{ x.items()|list|length }}",
    "{{ x.copy() }}",
    "{{ 'b' in x.keys() }}",
    "{{ numbers.copy() }}",
    "{{ x | map('upper') | list }}",
    "{{ numbers is iterable and numbers is not string and numbers is not mapping }}",
    "{{ strftime_now('%A %B %-d, %Y %U %w %V %y %c %x %X %G %u %W %D %R %n %t %l %k %s %f %Z %z') }}",
    "{{ x | tojson }} {{ floats | tojson }} {{ floats | map('string') | first }}",
    "{{ x | tojson(indent=2) }}",
    "{{ x | tojson(ensure_ascii=True) }}",
    "{{ x | tojson(separators=(',', ':'), sort_keys=true) }}",
    "{{ x.b }} {{ x['a'][1] }} {{ x.missing }} {{ x.none }} {{ x.yes }} {{ x.empty }} {{ x.no }}",
    "{{ pi }} {{ pi / 2 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 1e16 }} {{ 0.1 + 0.2 }} {{ 1 / 3 }}",
    "{{ words.split(',') }} {{ words.strip() }}|{{ words.rsplit(',', 1) }} {{ words.partition(',') }}",
    "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.startswith('ab') }} {{ 'aXb'.lower() }}",
    "{{ words | trim | upper | replace(',', ';') }} {{ words | length }}",
    "{{ numbers | sort | join('-') }} {{ numbers | first }} {{ numbers | last }} {{ numbers | sum }} {{ numbers[::-1] }}",
    "{% for k, v in x.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in x %}{{ k }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for n in numbers %}{% if n == 1 %}{% continue %}{% endif %}{{ n }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "{% for n in range(0, 10, 3) %}{{ loop.index0 }}:{{ n }} {% else %}none{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for n in numbers %}{% set ns.n = ns.n + n %}{% endfor %}{{ ns.n }}",
    "{% macro say(a, b='!') %}{{ a }}{{ b }}{% endmacro %}{{ say('hi') }}{{ say('ho', b='?') }}",
    "{% set block %}\n  in {{ pi }}\n{% endset %}[{{ block }}]",
    "{% generation %}said{% endgeneration %}\n  {%- generation -%} \n tight {%- endgeneration +%}\nend",
    "line\r\nnext\rlast\n",
    "  {% if true %}\n    kept\n  {% endif %}\n  {{ 'x' }}\n{# gone #}\ntail\n\n",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}",
    "{{ messages | map(attribute='role') | join(',') }} {{ (messages | last)['role'] }} {{ messages[-1].name }}",
    "{{ 'yes' if tools else 'no' }} {{ tools is none }} {{ documents is not none }} {{ foo is defined }} {{ foo }}",
    "{{ bos_token + eos_token }}{{ unk_token }}",
    "{{ x.a is iterable }} {{ x is mapping }} {{ 'a' is string }} {{ 1 is number }} {{ none is none }} {{ x.a is sequence }}",
    "{{ none is iterable }} {{ missing is iterable }} {{ 'a' is iterable }} {{ 1 is iterable }} {{ x is iterable }} {{ tools is iterable }}",
    "{{ 'a' ~ 1 ~ none ~ true }} {{ 'é'|e }} {{ '<b>'|safe }} {{ [1, 'a', none, true, {'k': 1.0}] }}",
    "{{ {'a': 1}.get('b', 'c') }} {{ {'a': 1, 'b': 2}.keys() | list }} {{ dict(a=1).a }}",
    "{{ 'a' in 'abc' }} {{ 4 in numbers }} {{ 'b' in x }} {{ not 1 == 1.0 }} {{ 1 < 2 < 3 }}",
    "{{ '%s and %d' | format('a', 3) }} {{ 'ab' * 2 }} {{ 'title case'|title }} {{ 'cap'|capitalize }}",
    "{{ words | default('d') }} {{ nothing | default('d') }} {{ '' | default('d', true) }}",
    "{%- if messages[0]['role'] == 'system' -%} sys {%- elif false -%} no {%- else -%} none {%- endif -%}",
    "{{ raise_exception('No good') }}",
    "{{ messages[0].content.nothing() }}",
    "{{ 1 + 'a' }}",
    "{{ 'a\\\nb' }}",
]


def as_transformers(message, as_text):
    """A message of the network as transformers has it: calls wrapped, arguments parsed, no word as ''.

    DeepSeek's templates want otherwise: arguments as text, and no content where there is no word.
    """
    if "tool_calls" not in message:
        return message
    wrapped = []
    for called in message["tool_calls"]:
        text = called["arguments"] or "{}"
        arguments = text if as_text else json.loads(text)
        function = {"name": called["name"], "arguments": arguments}
        wrapped.append({"type": "function", "id": called["id"], "function": function})
    content = None if as_text and not message["content"] else message["content"]
    return {**message, "content": content, "tool_calls": wrapped}


def render(source, messages, options, as_text=False):
    """What transformers makes of it, or how it fails: by raise_exception, or otherwise."""
    messages = [as_transformers(message, as_text) for message in messages]
    options = dict(options)
    tools, add = options.pop("tools", None), options.pop("add_generation_prompt", False)
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=add, **TOKENS, **options
        )
    except Exception as error:
        refused = type(error) is jinja2.exceptions.TemplateError
        return {"error": "refused" if refused else "failed", "message": str(error) if refused else None}
    return {"expected": rendered[0]}


def conversations():
    """Every family's template on every conversation."""
    for family in FAMILIES:
        for conversation, messages in CONVERSATIONS.items():
            for options in OPTIONS:
                yield f"{family}, {conversation}", family, messages, options
    for family in TOOL_FAMILIES:
        for conversation, messages in TOOL_CONVERSATIONS.items():
            for options in TOOL_OPTIONS[:1] + TOOL_OPTIONS[3:] if "qwen3 " not in family else TOOL_OPTIONS:
                # This family cannot be told of functions: such a request is refused before it is rendered.
                options = {key: value for key, value in options.items() if family not in AS_TEXT or key != "tools"}
                yield f"{family}, {conversation}", family, messages, options


def one_a_line(table):
    """The table as JSON: what stands in its lists stands on a line of its own."""

    def write(value):
        if not isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"

    return "{\n" + ",\n".join(f"{json.dumps(key)}: {write(value)}" for key, value in table.items()) + "\n}\n"


def main():
    templates = FAMILIES | TOOL_FAMILIES
    cases = []
    for name, family, messages, options in conversations():
        case = {"name": name, "template": family, "messages": messages, "options": options}
        cases.append(case | render(templates[family], messages, options, family in AS_TEXT))
    features = []
    for source in [f"{{{{ {line} }}}}" for line in EXPRESSIONS.strip().splitlines()] + TEMPLATES:
        features.append({"template": source} | render(source, TALK, VARIABLES))
    table = {
        "made_by": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}",
        "now": NOW,
        "special": TOKENS,
        "templates": templates,
        "cases": cases,
        "variables": {"messages": TALK, "tools": None, "documents": None, "add_generation_prompt": False, **TOKENS, **VARIABLES},
        "features": features,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(one_a_line(table), encoding="utf-8")
    print(f"{len(cases)} conversations, {len(features)} features, by {table['made_by']}")


if __name__ == "__main__":
    main()
