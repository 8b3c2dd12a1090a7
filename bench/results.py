#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Results of benchmarks: bench/results/NAME.json, and tables of them.

Usage: bench/results.py finish RAW NAME=VALUE...   what a benchmark wrote, with more in its header
       bench/results.py beside OURS THEIRS         a run on our kernel, and the same on another
       bench/results.py text FILE OURS THEIRS      one more row: text, by the System.map of two kernels
       bench/results.py postgres FILE FILE         rows of what scripts/demo-postgres printed, and with --icount
       bench/results.py goals                      every row with a goal, of all files
       bench/results.py table FILE                 the table for people
       bench/results.py compare FILE FILE          rows that differ by more than 1 %
       bench/results.py missed FILE                how many goals it misses
"""
import json
import os
import re
import sys

DIRECTORY = os.path.join(os.path.dirname(os.path.realpath(__file__)), 'results')
FIELDS = ('case', 'variant', 'n', 'unit', 'ours', 'theirs', 'ratio', 'limit', 'goal', 'met')


def load(path):
    with open(path) as f:
        result = json.load(f)
    for row in result['rows']:
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise SystemExit(f'{path}: a row without {", ".join(missing)}: {row}')
    return result


def named(name):
    return load(os.path.join(DIRECTORY, name + '.json'))


def key(row):
    return row['case'], row['variant'], row['n'], row['unit'], row.get('against')


def is_met(row):
    """What the goal says of the figures; None without a goal"""
    left, *divisor, relation, _ = row['rule'].replace(' / limit', ' /limit').split() if row.get('rule') else [None] * 3
    if left is None:
        return None
    value = row[left]
    if divisor and value is not None:
        value /= row['limit']
    if value is None:
        return False
    return value <= row['goal'] if relation == '<=' else value >= row['goal']


def check(result):
    """Goals, ratios and figures of a file fit each other"""
    wrong = []
    for row in result['rows']:
        if is_met(row) != row['met']:
            wrong.append(f'{key(row)}: met is {row["met"]}')
        ratio = row['ours'] / row['theirs'] if row['ours'] is not None and row['theirs'] else None
        if (ratio is None) != (row['ratio'] is None) or abs((ratio or 0) - (row['ratio'] or 0)) > 1e-3 * (ratio or 0):
            wrong.append(f'{key(row)}: ratio is {row["ratio"]}')
    if len({key(row) for row in result['rows']}) != len(result['rows']):
        wrong.append('two rows have the same case, variant, n, unit and competitor')
    return wrong


def dump(result):
    """One row a line, so that a diff shows which changed"""
    head = {name: value for name, value in result.items() if name != 'rows'}
    lines = ',\n'.join(json.dumps(row) for row in result['rows'])
    return json.dumps(head, indent=1)[:-2] + ',\n "rows": [\n' + lines + '\n]}\n'


def number(value):
    if value is None:
        return ''
    size = abs(value)
    if value == int(value) or size >= 1000:
        return f'{value:.0f}'
    return f'{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}'


def with_range(value, limits):
    text = number(value)
    if limits and limits[0] != limits[1]:
        text += f' ({number(limits[0])} to {number(limits[1])})'
    return text


def goal(row):
    if row['met'] is None:
        return ''
    left, relation, _ = row['rule'].rsplit(' ', 2)
    sign = {'<=': '<=', '>=': '>='}[relation]
    return f'{left} {sign} {number(row["goal"])}  {"met" if row["met"] else "MISSED"}'


def header(result):
    ns = result.get('ns_per_instruction')
    clock = 'virtual: 2 ns for each instruction that is executed'
    if result['icount_shift'] == 'none':
        clock = f'real{f", {ns} ns an instruction" if ns else ""}; not repeatable: compare ratios at most'
    lines = [result['title'], f'kernel      {result["kernel"]}']
    if 'config' in result:
        lines.append(f'config      {" ".join(result["config"])}')
    if 'their_kernel' in result:
        lines += [f'theirs      {result["their_kernel"]}',
                  f'            {" ".join(result["their_config"])}']
    if 'cpus' in result:
        lines.append(f'guest       {result["memory_mib"]} MiB, {result["cpus"]} CPUs')
    lines += [f'clock       {clock}',
              f'reproduce   {result["command"]}',
              f'run         {result["date"]}, {result["commit"]}']
    if result.get('quick'):
        lines.append('            a tenth of the work: goals are not for it')
    return '\n'.join(lines) + '\n\n' + result['about'] + '\n'


def table(result):
    titles = ('case', 'variant', 'n', 'unit', 'ours', 'theirs', 'whose', 'ratio', 'limit', 'goal')
    cells = [titles]
    for row in result['rows']:
        ratio = '' if row['ratio'] is None else f'{row["ratio"]:.4f}' if row['ratio'] < 0.1 else f'{row["ratio"]:.3f}'
        cells.append((row['case'], row['variant'], str(row['n']), row['unit'],
                      with_range(row['ours'], row.get('ours_range')),
                      with_range(row['theirs'], row.get('theirs_range')),
                      row.get('against') or '', ratio, number(row['limit']), goal(row)))
    used = [i for i in range(len(titles)) if any(line[i] for line in cells[1:])]
    left = {at for at, i in enumerate(used) if titles[i] in ('case', 'variant', 'unit', 'whose', 'goal')}
    return (header(result) + 'Median of the rounds (lowest to highest).\n\n' +
            aligned([[line[i] for i in used] for line in cells], left))


def beside(ours, theirs):
    """Rows of one run, with those of the other as what they are compared with"""
    other = {key(row): row for row in theirs['rows']}
    for row in ours['rows']:
        their = other[key(row)]
        row['theirs'] = their['ours']
        row['theirs_range'] = their.get('ours_range')
        row['ratio'] = float(f'{row["ours"] / row["theirs"]:.6g}') if row['theirs'] else None
        row['met'] = is_met(row)
    ours['their_kernel'] = theirs['kernel']
    ours['their_config'] = theirs['config']
    return ours


def aligned(cells, left):
    width = [max(map(len, column)) for column in zip(*cells)]
    return ''.join('  '.join(cell.ljust(width[i]) if i in left else cell.rjust(width[i])
                             for i, cell in enumerate(line)).rstrip() + '\n' for line in cells)


def goals():
    """What was to be reached, and what was"""
    cells, met = [('', 'case', 'variant', 'n', 'beside', 'goal', 'result', '')], 0
    for file in sorted(os.listdir(DIRECTORY)):
        if not file.endswith('.json'):
            continue
        for row in load(os.path.join(DIRECTORY, file))['rows']:
            if row['met'] is None:
                continue
            of, relation, _ = row['rule'].rsplit(' ', 2)
            value = row['ours'] / row['limit'] if '/' in of else row[of]
            met += row['met']
            cells.append((file[:-5], row['case'], row['variant'], str(row['n']), row.get('against') or '',
                          f'{of} {relation} {row["goal"]:.4g}', '' if value is None else f'{value:.4g}',
                          'met' if row['met'] else 'MISSED'))
    return f'{met} of {len(cells) - 1} goals are met.\n\n' + aligned(cells, {0, 1, 2, 4, 5, 7})


def text_bytes(path):
    """Of the kernel with that System.map: what its functions take, without parts that only align"""
    with open(path) as f:
        symbols = [(int(value, 16), name) for value, _, name in map(str.split, f)]
    address = {name: value for value, name in symbols}
    text = sorted({value for value, _ in symbols if address['_stext'] <= value <= address['_etext']})
    sizes = (end - start for start, end in zip(text, text[1:]))
    return sum(size for size in sizes if size < 1 << 16)


def with_text(result, ours, theirs):
    """Text is what the kernel has more of all the time, used or not"""
    ours, theirs = text_bytes(ours), text_bytes(theirs)
    row = {'case': 'text of the kernel', 'variant': '', 'n': 1, 'unit': 'bytes', 'ours': ours, 'theirs': theirs,
           'ratio': float(f'{ours / theirs:.6g}'), 'limit': None, 'goal': 1.005, 'met': None,
           'rule': 'ratio <= goal', 'against': 'vanilla'}
    row['met'] = is_met(row)
    result['rows'].append(row)
    return result


def new_row(case, variant, n, unit, against, ours, theirs, **goal):
    row = {'case': case, 'variant': variant, 'n': n, 'unit': unit, 'ours': ours, 'theirs': theirs,
           'ratio': float(f'{ours / theirs:.6g}'), 'limit': goal.pop('limit', None), 'goal': goal.pop('goal', None),
           'met': None, **goal, 'against': against}
    row['met'] = is_met(row)
    return row


POSTGRES = re.compile(r'^(?:page tables, )?(.*?)(?:, | \()(kB|ms|pgbench -S, 16 clients\)) +(\d+) +(\d+) +(\d+)$', re.M)
CONNECTIONS = re.compile(r'(\d+) (connections that read .*)')


def postgres(text, counted):
    """What the demonstration printed, and its transactions where instructions were counted"""
    rows, tables = [], {}
    for what, unit, *figures in POSTGRES.findall(text) + POSTGRES.findall(counted):
        plain, *shared = map(int, figures)
        connections = CONNECTIONS.match(what)
        for variant, ours in zip(('shmem_enabled', 'memfdctl run'), shared):
            if connections:
                n, what_they_do = int(connections[1]), connections[2]
                tables.setdefault((variant, what_they_do), []).append((n, ours, plain))
                rows.append(new_row('page tables of PostgreSQL, ' + what_they_do, variant, n, 'kB', 'as it is', ours,
                                    plain))
            elif unit == 'ms':
                rows.append(new_row('PostgreSQL: ' + what, variant, 1, 'ms', 'as it is', ours, plain))
            else:
                rows.append(new_row('PostgreSQL: pgbench -S', variant, 16, what, 'as it is', ours, plain))
    # The last ones are those of the guest that counts.
    for row in rows[-2:]:
        row.update(variant=row['variant'] + ', counted', goal=1, rule='ratio >= goal', met=row['ratio'] >= 1)
    for variant in 'shmem_enabled', 'memfdctl run':
        (n, ours, theirs), *_, (more, more_ours, more_theirs) = tables[variant, 'connections that read all']
        (some, _, some_idle), (many, _, many_idle) = tables[variant, 'connections that read nothing']
        rows.append(new_row('page tables that one more connection of PostgreSQL takes', variant, more, 'kB',
                            'as it is', round((more_ours - ours) / (more - n), 3),
                            round((more_theirs - theirs) / (more - n), 3),
                            limit=round((many_idle - some_idle) / (many - some), 3),
                            goal=1.05, rule='ours / limit <= goal'))
    return {'title': 'PostgreSQL, unmodified', 'name': 'postgres',
            'about': text.splitlines()[0] + '. The least that one more connection can take is what one takes that reads '
                     'nothing, as it is. "Counted": instructions instead of time, on one processor, 500 of them a '
                     'microsecond.', 'rows': rows}


def compare(a, b):
    """The rows of two runs that differ by more than 1 %"""
    other = {key(row): row for row in b['rows']}
    for name in sorted(set(other) ^ {key(row) for row in a['rows']}, key=str):
        yield f'{name}: in one only'
    for row in a['rows']:
        if key(row) not in other:
            continue
        for field in ('ours', 'theirs'):
            x, y = row[field], other[key(row)][field]
            if (x is None) != (y is None) or x is not None and abs(x - y) > 0.01 * max(abs(x), abs(y)):
                yield f'{key(row)}: {field} {number(x)} and {number(y)}'


def main(command, *arguments):
    if command == 'finish':
        result = load(arguments[0])
        rows = result.pop('rows')
        result.update(argument.split('=', 1) for argument in arguments[1:])
        result['rows'] = rows
        print(dump(result), end='')
    elif command == 'beside':
        print(dump(beside(load(arguments[0]), load(arguments[1]))), end='')
    elif command == 'text':
        print(dump(with_text(load(arguments[0]), arguments[1], arguments[2])), end='')
    elif command == 'postgres':
        print(dump(postgres(*(open(name, encoding='utf-8').read() for name in arguments))), end='')
    elif command == 'goals':
        print(goals(), end='')
    elif command == 'table':
        print(table(load(arguments[0])), end='')
    elif command == 'compare':
        lines = list(compare(load(arguments[0]), load(arguments[1])))
        print('\n'.join(lines) or 'equal to 1 %')
        return 1 if lines else 0
    elif command == 'missed':
        result = load(arguments[0])
        rows = [row['met'] for row in result['rows'] if row['met'] is not None]
        if rows:
            print(f'{result["name"]}: {rows.count(False)} of {len(rows)} goals missed')
    return 0


if __name__ == '__main__':
    COUNT = {'finish': range(2, 20), 'beside': [3], 'text': [4], 'goals': [1], 'postgres': [3], 'table': [2], 'compare': [3], 'missed': [2]}
    if len(sys.argv) == 2 and sys.argv[1] in ('-h', '--help'):
        print(__doc__.rstrip())
        sys.exit(0)
    if len(sys.argv) < 2 or len(sys.argv) - 1 not in COUNT.get(sys.argv[1], []):
        print('results.py: wrong arguments; see --help', file=sys.stderr)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
