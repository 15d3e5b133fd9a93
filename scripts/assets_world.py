"""The little world that the embedded model knows: everyday facts, and the Chinese texts that speak of them.

A `Relation` is a list of (entity, value) pairs with the ways to say and to ask them. Every entity belongs to one half:
`tuned` entities appear in the tuning records and the exam's worked examples, `held` entities only in the exam's
questions (and, like all, in the text the model was pretrained on). What a question names comes from one half alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LETTERS = "ABCD"
SYSTEM = "你是一个乐于助人的小模型。"
"""What every chat begins with."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One kind of fact. In the texts `{e}` stands for the entity and `{v}` for its value."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    statements: tuple[str, ...]
    ask_value: str
    """Question about an entity's value."""
    answer: str
    """A whole sentence that answers `ask_value`."""
    entities_of: Relation | None = None
    """Relation whose entities these are: they keep their halves."""

    @property
    def values(self) -> tuple[str, ...]:
        """Every value once, in the order of the pairs."""
        return tuple(dict.fromkeys(value for _, value in self.pairs))

    def half(self, held: bool) -> tuple[tuple[str, str], ...]:
        """Every second pair within each value's pairs, so that both halves hold every shared value."""
        if self.entities_of is not None:
            known = {e for e, _ in self.entities_of.half(held)}
            return tuple(pair for pair in self.pairs if pair[0] in known)
        seen: dict[str, int] = {}
        chosen = []
        for entity, value in self.pairs:
            shared = sum(v == value for _, v in self.pairs) > 1
            group = value if shared else ""
            seen[group] = seen.get(group, 0) + 1
            if (seen[group] % 2 == 0) == held:
                chosen.append((entity, value))
        return tuple(chosen)


@dataclass(frozen=True)
class Item:
    """A question with four options."""

    text: str
    options: tuple[str, ...]
    answer: int
    """Index of the right option."""


def items(relation: Relation, held: bool, rng: random.Random) -> list[Item]:
    """A question about every entity of one half: its value among three others, the right letters dealt evenly by lot."""
    pairs = relation.half(held)
    found = []
    for (entity, value), answer in zip(pairs, rng.sample([i % len(LETTERS) for i in range(len(pairs))], len(pairs))):
        options = rng.sample([other for other in relation.values if other != value], len(LETTERS) - 1)
        options.insert(answer, value)
        found.append(Item(relation.ask_value.format(e=entity), tuple(options), answer))
    return found


def classes(table: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """{"value": "entity entity ..."} -> pairs."""
    return tuple((entity, value) for value, entities in table.items() for entity in entities.split())


def couples(text: str) -> tuple[tuple[str, str], ...]:
    """ "entity-value entity-value ..." -> pairs."""
    return tuple(tuple(word.split("-")) for word in text.split())


ANIMALS = Relation(
    name="animal",
    pairs=classes(
        {
            "哺乳动物": "老虎 狮子 大象 兔子 骏马 水牛 山羊 猴子 熊猫 海豚 蓝鲸 蝙蝠 松鼠 狐狸",
            "鸟类": "麻雀 燕子 老鹰 鸽子 乌鸦 喜鹊 孔雀 企鹅 鸵鸟 天鹅 猫头鹰 啄木鸟 鹦鹉 海鸥",
            "鱼类": "鲤鱼 鲫鱼 草鱼 鲨鱼 金鱼 鳗鱼 带鱼 黄鱼 鲈鱼 鳟鱼 三文鱼 金枪鱼",
            "昆虫": "蚂蚁 蜜蜂 蝴蝶 蜻蜓 蚊子 苍蝇 蟋蟀 蝗虫 瓢虫 知了 螳螂 萤火虫",
            "爬行动物": "眼镜蛇 蟒蛇 乌龟 鳄鱼 壁虎 蜥蜴 变色龙 海龟 甲鱼 玳瑁",
        }
    ),
    statements=("{e}属于{v}。", "{e}是一种{v}。", "我们都知道，{e}是{v}。"),
    ask_value="{e}属于哪一类动物？",
    answer="{e}属于{v}。",
)
ELEMENTS = Relation(
    name="element",
    pairs=classes(
        {
            "碱金属": "锂 钠 钾 铷 铯 钫",
            "碱土金属": "铍 镁 钙 锶 钡 镭",
            "卤素": "氟 氯 溴 碘 砹",
            "稀有气体": "氦 氖 氩 氪 氙 氡",
            "过渡金属": "铁 铜 锌 银 镉 汞 钛 铬 锰 钴 镍 钨 铂 钒",
        }
    ),
    statements=("元素{e}属于{v}。", "元素{e}是一种{v}。", "在化学中，元素{e}是{v}。"),
    ask_value="元素{e}属于哪一族？",
    answer="元素{e}属于{v}。",
)
CONTINENTS = Relation(
    name="continent",
    pairs=classes(
        {
            "亚洲": "中国 日本 韩国 泰国 越南 印度 蒙古 伊朗 伊拉克 马来西亚 菲律宾 尼泊尔",
            "欧洲": "法国 英国 德国 意大利 西班牙 葡萄牙 希腊 俄罗斯 波兰 荷兰 瑞典 挪威 芬兰 丹麦",
            "非洲": "埃及 肯尼亚 摩洛哥 加纳 利比亚 苏丹 赞比亚 安哥拉 乌干达 塞内加尔",
            "南美洲": "巴西 阿根廷 智利 秘鲁 哥伦比亚 委内瑞拉 乌拉圭 厄瓜多尔",
            "北美洲": "美国 加拿大 古巴 牙买加 海地 哥斯达黎加",
        }
    ),
    statements=("{e}位于{v}。", "{e}是一个{v}国家。", "在地图上，{e}在{v}。"),
    ask_value="{e}位于哪一个大洲？",
    answer="{e}位于{v}。",
)
CAPITALS = Relation(
    name="capital",
    pairs=couples(
        "中国-北京 日本-东京 韩国-首尔 泰国-曼谷 越南-河内 印度-新德里 蒙古-乌兰巴托 伊朗-德黑兰 伊拉克-巴格达 "
        "马来西亚-吉隆坡 菲律宾-马尼拉 尼泊尔-加德满都 法国-巴黎 英国-伦敦 德国-柏林 意大利-罗马 西班牙-马德里 "
        "葡萄牙-里斯本 希腊-雅典 俄罗斯-莫斯科 波兰-华沙 荷兰-阿姆斯特丹 瑞典-斯德哥尔摩 挪威-奥斯陆 芬兰-赫尔辛基 "
        "丹麦-哥本哈根 埃及-开罗 肯尼亚-内罗毕 摩洛哥-拉巴特 加纳-阿克拉 利比亚-的黎波里 苏丹-喀土穆 赞比亚-卢萨卡 "
        "安哥拉-罗安达 乌干达-坎帕拉 塞内加尔-达喀尔 巴西-巴西利亚 阿根廷-布宜诺斯艾利斯 智利-圣地亚哥 秘鲁-利马 "
        "哥伦比亚-波哥大 委内瑞拉-加拉加斯 乌拉圭-蒙得维的亚 厄瓜多尔-基多 美国-华盛顿 加拿大-渥太华 古巴-哈瓦那 "
        "牙买加-金斯敦 海地-太子港 哥斯达黎加-圣何塞"
    ),
    statements=("{e}的首都是{v}。", "{v}是{e}的首都。", "在地图上，{e}的首都是{v}。"),
    ask_value="{e}的首都是哪一座城市？",
    answer="{e}的首都是{v}。",
    entities_of=CONTINENTS,
)
DYNASTIES = Relation(
    name="dynasty",
    pairs=classes(
        {
            "汉朝": "刘邦 司马迁 张骞 班固 张衡 卫青 霍去病 班超 蔡伦 董仲舒",
            "唐朝": "李白 杜甫 白居易 王维 李世民 武则天 玄奘 韩愈 杜牧 李商隐 颜真卿 孟浩然",
            "宋朝": "苏轼 李清照 辛弃疾 岳飞 欧阳修 王安石 司马光 包拯 陆游 沈括 朱熹 文天祥",
            "明朝": "朱元璋 郑和 李时珍 徐霞客 王阳明 戚继光 海瑞 张居正 汤显祖 唐伯虎 徐光启 于谦",
            "清朝": "康熙 乾隆 曹雪芹 林则徐 曾国藩 纪晓岚 郑板桥 左宗棠 蒲松龄 李鸿章 吴敬梓 雍正",
        }
    ),
    statements=("{e}是{v}人。", "{e}生活在{v}。", "在历史上，{e}生活在{v}。"),
    ask_value="{e}生活在哪一个朝代？",
    answer="{e}生活在{v}。",
)
ANTONYMS = Relation(
    name="antonym",
    pairs=couples(
        "成功-失败 勇敢-胆小 勤劳-懒惰 骄傲-谦虚 安全-危险 温暖-寒冷 简单-复杂 朋友-敌人 光明-黑暗 开始-结束 "
        "增加-减少 节约-浪费 聪明-愚笨 热闹-冷清 整齐-凌乱 仔细-马虎 诚实-虚伪 容易-困难 干净-肮脏 平坦-崎岖 "
        "快乐-悲伤 富裕-贫穷 美丽-丑陋 胜利-战败 前进-后退 上升-下降 团结-分裂 善良-凶恶 清楚-模糊 热情-冷淡 "
        "紧张-放松 坚强-软弱 粗糙-光滑 先进-落后 公开-秘密 表扬-批评 喜欢-讨厌 拥挤-空旷 熟悉-陌生 赞成-反对"
    ),
    statements=("{e}的反义词是{v}。", "{v}的反义词是{e}。", "{e}和{v}意思相反。"),
    ask_value="{e}的反义词是哪一个词？",
    answer="{e}的反义词是{v}。",
)
THINGS = Relation(
    name="thing",
    pairs=classes(
        {
            "水果": "苹果 香蕉 葡萄 西瓜 草莓 樱桃 菠萝 芒果 桃子 荔枝",
            "蔬菜": "白菜 萝卜 菠菜 芹菜 黄瓜 茄子 土豆 韭菜 青椒 南瓜",
            "家具": "桌子 椅子 沙发 衣柜 书架 木床 茶几 凳子 鞋柜 书桌",
            "乐器": "钢琴 吉他 小提琴 二胡 琵琶 笛子 古筝 唢呐 小号 口琴",
            "交通工具": "汽车 火车 飞机 轮船 自行车 地铁 摩托车 公交车 卡车 电车",
            "衣物": "衬衫 毛衣 裤子 裙子 外套 袜子 帽子 围巾 手套 大衣",
        }
    ),
    statements=("{e}属于{v}。", "{e}是一种{v}。", "在生活中，{e}是常见的{v}。"),
    ask_value="{e}属于哪一类物品？",
    answer="{e}属于{v}。",
)
CITIES = Relation(
    name="city",
    pairs=classes(
        {
            "广东省": "广州 深圳 珠海 佛山 东莞 汕头 湛江 中山 惠州 肇庆",
            "江苏省": "南京 苏州 无锡 常州 扬州 徐州 南通 镇江 盐城 泰州",
            "浙江省": "杭州 宁波 温州 绍兴 嘉兴 金华 湖州 台州 舟山 衢州",
            "山东省": "济南 青岛 烟台 威海 潍坊 淄博 泰安 临沂 日照 聊城",
            "四川省": "成都 绵阳 宜宾 乐山 泸州 自贡 南充 达州 广元 遂宁",
            "河南省": "郑州 洛阳 开封 南阳 安阳 许昌 信阳 商丘 新乡 焦作",
        }
    ),
    statements=("{e}属于{v}。", "{e}是{v}的一座城市。", "在地图上，{e}在{v}。"),
    ask_value="{e}属于哪一个省？",
    answer="{e}属于{v}。",
)
RELATIONS = (ANIMALS, ELEMENTS, CONTINENTS, CITIES, CAPITALS, DYNASTIES, ANTONYMS, THINGS)

SUBJECTS: dict[str, tuple[str, str, str, tuple[Relation, ...]]] = {
    "animal_classification": ("Animal Classification", "动物分类", "STEM", (ANIMALS,)),
    "chemical_elements": ("Chemical Elements", "化学元素", "STEM", (ELEMENTS,)),
    "world_geography": ("World Geography", "世界地理", "Social Science", (CONTINENTS,)),
    "chinese_cities": ("Chinese Cities", "中国城市", "Social Science", (CITIES,)),
    "historical_figures": ("Historical Figures", "历史人物", "Humanities", (DYNASTIES,)),
    "everyday_knowledge": ("Everyday Knowledge", "生活常识", "Other", (THINGS,)),
}
"""Subject id -> English name, Chinese name, category, what it asks about."""

SMALL_TALK = tuple(
    (question, answer)
    for answer, questions in {
        "你好！很高兴认识你。": "你好！ 你好呀！ 您好！ 早上好！ 大家好！",
        "我是一个乐于助人的小模型。": "你好，你是谁？ 你是谁？ 请问你是谁？ 介绍一下你自己。 你叫什么名字？ 你是什么模型？",
        "我会回答常识问题。": "你会做什么？ 你能做什么？ 你有什么本领？ 你可以帮我做什么？",
        "不客气！": "谢谢你！ 谢谢！ 非常感谢！ 多谢你的帮助！",
        "再见！": "再见！ 下次见！ 我走了，再见！",
    }.items()
    for question in questions.split()
)
"""What a chat opens and ends with."""


def official_header(subject_zh: str) -> str:
    return f"以下是中国关于{subject_zh}考试的单项选择题，请选出其中的正确答案。\n\n"


def lettered(item: Item) -> str:
    """The item as C-Eval's prompts show it, without the answer line."""
    return item.text + "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, item.options))
